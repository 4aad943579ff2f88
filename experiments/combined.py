"""Compress one network by several techniques, alone, in pairs, all together and in other orders: one table and two figures.

    python -m experiments.combined --config configs/combined.py --seeds 3
    python -m experiments.combined --config configs/combined.py --seeds 3 --only dense prune quantize prune+quantize
    python -m experiments.combined --config configs/combined.py --max-steps 2 --run-dir runs/trial
    python -m experiments.combined --config configs/combined.py --seeds 3 --resume

Every row is a fine-tuning of the same dense networks, one a seed, for the same epochs, the dense row included. Finished rows
are kept in the run's folder, and `--resume` does not run them again.
"""

from functools import partial

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.combined import report
from experiments.studies.combined.study import Runner, Study


def run_study(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only"])
    report.write(folder, study, Runner(study, seeds, folder).run())


main = partial(cli.run, run_study, default_config="combined.py", description=__doc__, kind=Study)

if __name__ == "__main__":
    main()
