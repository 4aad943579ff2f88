"""Lottery tickets: prune what was trained, go back, train again; accuracy against sparsity, round by round.

    python -m experiments.lottery_ticket --seeds 3
    python -m experiments.lottery_ticket --rounds 15 --fraction 0.2 --seeds 3
    python -m experiments.lottery_ticket --rewind-epochs 0 --run-dir runs/original
    python -m experiments.lottery_ticket --seeds 3 --resume

Three branches. weight_rewinding: masks by magnitude of what the branch trained last, weights and optimiser of the rewinding
point. rate_rewinding: masks of its own, the weights trained last, the optimiser of the rewinding point. random_reinit: the
masks of weight_rewinding, weights drawn anew, trained from the start.

Source: Frankle and Carbin 2019; Frankle et al. 2020 (rewinding to an early step); Renda, Frankle, Carbin 2020 (rate rewinding).
"""

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.sparsity import report
from experiments.studies.sparsity.lottery import Lottery, Tournament

ABOUT = (
    "weight_rewinding and rate_rewinding prune what they trained themselves, a fraction of what is left each round; "
    "random_reinit trains the masks of weight_rewinding from new weights."
)


def main(options: cli.Options[Lottery]) -> None:
    """Run the experiment, and report it."""
    config, seeds, folder = claim_study(options)
    results = Tournament(config, seeds, folder, config.data.load()).run(resume=options.resume)
    report.write(folder, config, results, script="lottery_ticket", about=ABOUT)


if __name__ == "__main__":
    cli.run(main, default_config="lottery_ticket.py", description=__doc__, kind=Lottery)
