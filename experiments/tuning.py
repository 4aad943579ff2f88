"""Recipes that are found, against uniform ones and one technique alone, at the same bytes; and trained after that.

    python -m experiments.tuning --config configs/tuning_lenet5.py --seeds 3
    python -m experiments.tuning --config configs/tuning_lenet300.py --seeds 3 --only dense tuned trained
    python -m experiments.tuning --config configs/tuning_lenet5.py --max-steps 2 --run-dir runs/trial
    python -m experiments.tuning --config configs/tuning_lenet5.py --seeds 3 --resume

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.tuning import Tuning

main = script(__doc__, "tuning_lenet5.py", Tuning)

if __name__ == "__main__":
    main()
