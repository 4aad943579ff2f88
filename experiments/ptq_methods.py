"""Post-training quantization of a ResNet-20: every method at 8, 4 and 3 bits, with 8-bit activations.

    python -m experiments.ptq_methods --data FOLDER --seeds 3
    python -m experiments.ptq_methods --data FOLDER --images 16 --batch-size 16 --held-out 16 --test-images 16 --only nearest

FOLDER holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`. Nothing is trained.
"""

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.ptq.study import PtqMethods, Runner, write

AIMS = {8: 91.0, 4: 91.0, 3: 88.0}
"""Accuracies to reach, in percent, by bits of the weights."""


def main(options: cli.Options[PtqMethods]) -> None:
    """Run the rows, and report them."""
    config, seeds, folder = claim_study(options, besides=["only", "data"])
    write(folder, config, [result for seed in seeds for result in Runner(config, seed, folder).run()], AIMS)


if __name__ == "__main__":
    cli.run(main, default_config="ptq_methods.py", description=__doc__, kind=PtqMethods)
