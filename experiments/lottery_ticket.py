"""LotteryTicket tickets: prune what was trained, go back, train again; accuracy against sparsity, round by round.

    python -m experiments.lottery_ticket --seeds 3
    python -m experiments.lottery_ticket --rounds 15 --fraction 0.2 --seeds 3
    python -m experiments.lottery_ticket --rewind-epochs 0 --run-dir runs/original
    python -m experiments.lottery_ticket --seeds 3 --resume

Three branches. weight_rewinding: masks by magnitude of what the branch trained last, weights and optimiser of the rewinding
point. rate_rewinding: masks of its own, the weights trained last, the optimiser of the rewinding point. random_reinit: the
masks of weight_rewinding, weights drawn anew, trained from the start.

Source: Frankle and Carbin 2019; Frankle et al. 2020 (rewinding to an early step); Renda, Frankle, Carbin 2020 (rate rewinding).
"""

from experiments.common.study import script
from experiments.studies.lottery_ticket import LotteryTicket

main = script(__doc__, "lottery_ticket.py", LotteryTicket)

if __name__ == "__main__":
    main()
