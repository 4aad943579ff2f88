"""How long the table of a network of 20 layers takes: every layer alone under every choice, and every group of channels.

    python -m experiments.benchmarks.tuning_table --out experiments/results/tuning_table.md

ResNet-20 for images of 32 by 32, weights He's at the start, images of smooth noise: the time depends on neither. Columns: what
the losses are found by; choices of layers and of groups that were measured; seconds on the wall, which other work on the
machine lengthens; seconds of processor time of all threads, with all compilation. The aim is 180 seconds.
"""

import time

from experiments.benchmarks.harness import arguments, origin, publish, yes
from experiments.benchmarks.layer_by_layer import network
from lepton_jax.tuning import Bits, Channels, Rank, Sparsity, measure

AIM = 180
OPTIONS = [Bits(2, 3, 4, 8), Sparsity(0.5), Rank(0.5), Channels(0.25, 0.5)]


def main() -> None:
    """Measure, and print a table."""
    args = arguments(__doc__, out=True, images=(100, "for calibration"), by=(["outputs", "gradients"], "which"))
    apply, variables, batches = network(20, args.images)
    lines = [
        "# The table of a network of 20 layers",
        "",
        f"Made by {origin('tuning_table')} {args.images} images; {', '.join(map(repr, OPTIONS))}.",
        "",
        f"| losses by | layers | choices | of groups | seconds on the wall | of the processor | at most {AIM} of these |",
        "|---|---|---|---|---|---|---|",
    ]
    for by in args.by:
        wall, processor = time.perf_counter(), time.process_time()
        table = measure(apply, variables, batches, OPTIONS, by=by)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        choices = sum(map(len, table.cells.values()))
        groups = sum(map(len, table.groups.cells.values())) if table.groups else 0
        facts = (by, len(table.layers), choices, groups, f"{wall:.0f}", f"{processor:.0f}", yes(processor <= AIM))
        lines.append(f"| {' | '.join(map(str, facts))} |")
    publish(lines, args.out)


if __name__ == "__main__":
    main()
