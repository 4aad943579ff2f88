"""Low rank of a ResNet-20 and a character transformer: error against multiply-accumulates, for methods and rules of ranks.

    python -m experiments.low_rank --data FOLDER
    python -m experiments.low_rank --data FOLDER --seeds 3 --only char_lm
    python -m experiments.low_rank --data FOLDER --resume
    python -m experiments.low_rank --data FOLDER --max-steps 2 --fractions 0.5 --run-dir runs/trial

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.low_rank import LowRank

main = script(__doc__, "low_rank.py", LowRank)

if __name__ == "__main__":
    main()
