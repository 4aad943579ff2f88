"""Post-training quantization of a classifier: every method at few bits, with 8-bit activations.

    python -m experiments.ptq_methods --data FOLDER --seeds 3
    python -m experiments.ptq_methods --config configs/ptq_methods_fashion_mnist.py --seeds 3
    python -m experiments.ptq_methods --data FOLDER --images 16 --batch-size 16 --held-out 16 --test-images 16 --only nearest

By default a ResNet-20 that others trained: FOLDER holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`, and nothing is
trained. Other configs train a network first, another for every seed.
"""

from functools import partial

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.ptq import report
from experiments.studies.ptq.study import PtqMethods, Runner


def run_study(options: cli.Options[PtqMethods]) -> None:
    """Run the rows, and report them."""
    config, seeds, folder = claim_study(options, besides=["only", "data"])
    report.write(folder, config, [result for seed in seeds for result in Runner(config, seed, folder).run()])


main = partial(cli.run, run_study, default_config="ptq_methods.py", description=__doc__, kind=PtqMethods)

if __name__ == "__main__":
    main()
