"""Train small networks with a large one's help, in float32 and at few bits, from several seeds: one table and one figure.

    python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3
    python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3 --only none hinton_t4
    python -m experiments.distillation --config configs/distillation_mnist.py --max-steps 2 --run-dir runs/trial
    python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3 --resume

Each seed has a teacher of its own, trained once; what it answers to every training image is computed once and kept in memory.
Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.distillation import report
from experiments.studies.distillation.study import Runner, Study


def main(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only"])
    report.write(folder, study, Runner(study, seeds, folder).run())


if __name__ == "__main__":
    cli.run(main, default_config="distillation_mnist.py", description=__doc__, kind=Study)
