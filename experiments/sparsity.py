"""Train a network sparse by several methods, at several sparsities, from several seeds: one table and one figure.

    python -m experiments.sparsity --config configs/gradual_pruning.py --seeds 3
    python -m experiments.sparsity --config configs/sparse_training.py --seeds 3 --only rigl set
    python -m experiments.sparsity --config configs/prune_at_init.py --seeds 3 --sparsities 0.9 0.95
    python -m experiments.sparsity --config configs/gradual_pruning.py --max-steps 2 --run-dir runs/trial
    python -m experiments.sparsity --config configs/gradual_pruning.py --seeds 3 --resume

Finished cells of the table are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.sparsity import report
from experiments.studies.sparsity.study import Runner, Study

ABOUT = "Every method has the same epochs, dense ones included."


def main(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only"])
    report.write(folder, study, Runner(study, seeds, folder).run(), script="sparsity", about=ABOUT)


if __name__ == "__main__":
    cli.run(main, default_config="gradual_pruning.py", description=__doc__, kind=Study)
