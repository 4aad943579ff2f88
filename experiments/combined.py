"""Compress one network by several techniques, alone, in pairs, all together and in other orders: one table and two figures.

    python -m experiments.combined --config configs/combined.py --seeds 3
    python -m experiments.combined --config configs/combined.py --seeds 3 --only dense prune quantize prune+quantize
    python -m experiments.combined --config configs/combined.py --max-steps 2 --run-dir runs/trial
    python -m experiments.combined --config configs/combined.py --seeds 3 --resume

Every row is a fine-tuning of the same dense networks, one a seed, for the same epochs, the dense row included. Finished rows
are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.combined import Combined

main = script(__doc__, "combined.py", Combined)

if __name__ == "__main__":
    main()
