"""Low rank of a ResNet-20 and a character transformer: error against multiply-accumulates, for methods and rules of ranks.

    python -m experiments.low_rank --data FOLDER
    python -m experiments.low_rank --data FOLDER --seeds 3 --only char_lm
    python -m experiments.low_rank --data FOLDER --resume
    python -m experiments.low_rank --data FOLDER --max-steps 2 --fractions 0.5 --run-dir runs/trial

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from functools import partial

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.low_rank import report
from experiments.studies.low_rank.study import Runner, Study


def run_study(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only", "data"])
    report.write(folder, study, Runner(study, seeds, folder).run())


main = partial(cli.run, run_study, default_config="low_rank.py", description=__doc__, kind=Study)

if __name__ == "__main__":
    main()
