"""Cut filters of a published ResNet-20 by several criteria, then tune: accuracy, size and speed of what is left.

    python -m experiments.filter_pruning --data FOLDER --seeds 3
    python -m experiments.filter_pruning --data FOLDER --seeds 3 --only l1 random --fractions 0.3
    python -m experiments.filter_pruning --data FOLDER --max-steps 2 --run-dir runs/trial
    python -m experiments.filter_pruning --data FOLDER --seeds 3 --resume

FOLDER holds `weights/resnet20_cifar10.npz`, `cifar10_subset/` and `cifar10_jpeg/`. Finished cells of the table are kept in the
run's folder, and `--resume` does not run them again.
"""

from functools import partial

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.filter_pruning import report
from experiments.studies.filter_pruning.study import Runner, Study


def run_study(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only", "data"])
    report.write(folder, study, Runner(study, seeds, folder).run())


main = partial(cli.run, run_study, default_config="filter_pruning.py", description=__doc__, kind=Study)

if __name__ == "__main__":
    main()
