"""Train a network sparse by several methods, at several sparsities, from several seeds: one table and one figure.

    python -m experiments.sparsity --config configs/gradual_pruning.py --seeds 3
    python -m experiments.sparsity --config configs/sparse_training.py --seeds 3 --only rigl set
    python -m experiments.sparsity --config configs/prune_at_init.py --seeds 3 --sparsities 0.9 0.95
    python -m experiments.sparsity --config configs/gradual_pruning.py --max-steps 2 --run-dir runs/trial
    python -m experiments.sparsity --config configs/gradual_pruning.py --seeds 3 --resume

Finished cells of the table are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.sparsity import Sparsity

main = script(__doc__, "gradual_pruning.py", Sparsity)

if __name__ == "__main__":
    main()
