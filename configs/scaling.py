"""One training of a pruned perceptron on 1, 2 and 4 devices of the host's processor, and by two processes.

Source: none; masks and losses are those of one device by construction, up to the order of sums.
Command: python -m experiments.scaling --seeds 3
Time: 55 minutes at low priority on 2 CPU cores that other programs shared (four rows took 5 when less busy).
Result, 3 seeds: losses at most 4.8e-7 from those of one device at any of 300 steps in each of the other six rows, masks the
same bit for bit in every run, 92.78 % everywhere. Processor time a step is 2.9 ms on one device, 5 to 8 on two and four, 34 and
59 by two processes (gloo on the loopback). Wall time a step (up to 268 ms) says how busy the cores were, nothing of division.
"""

from experiments.studies.scaling import Row, Scaling

ROWS = (
    Row(name="one_device"),
    Row(name="two_devices", devices=2),
    Row(name="two_devices_fsdp", devices=2, placement="fsdp"),
    Row(name="four_devices", devices=4),
    Row(name="four_devices_fsdp", devices=4, placement="fsdp"),
    Row(name="two_processes", devices=2, processes=2),
    Row(name="two_processes_fsdp", devices=2, processes=2, placement="fsdp"),
)


def get_config() -> Scaling:
    return Scaling(name="scaling", rows=ROWS)
