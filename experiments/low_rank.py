"""Low rank of a ResNet-20 and a character transformer: error against multiply-accumulates, for methods and rules of ranks.

    python -m experiments.low_rank --data FOLDER
    python -m experiments.low_rank --data FOLDER --seeds 3 --only char_lm
    python -m experiments.low_rank --data FOLDER --resume
    python -m experiments.low_rank --data FOLDER --max-steps 2 --fractions 0.5 --run-dir runs/trial

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

import dataclasses

from experiments.common import cli
from experiments.common.config import to_json
from experiments.common.run_dir import claim
from experiments.studies.low_rank import report as low_rank_report
from experiments.studies.low_rank.study import Runner, Study


def main(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study = options.setting
    seeds = range(study.seed, study.seed + options.seeds)
    # Which tasks are run now, and where the data lie, say nothing about what is in the folder.
    config = to_json(dataclasses.replace(study, only=(), data=Study.data))
    claim(options.folder, {**config, "seeds": list(seeds)}, resume=options.resume)
    low_rank_report.write(options.folder, study, Runner(study, seeds, options.folder).run())


if __name__ == "__main__":
    cli.run(main, default_config="low_rank.py", description=__doc__, kind=Study)
