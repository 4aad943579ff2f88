"""Cut filters of a published ResNet-20 by several criteria, then tune: accuracy, size and speed of what is left.

    python -m experiments.filter_pruning --data FOLDER --seeds 3
    python -m experiments.filter_pruning --data FOLDER --seeds 3 --only l1 random --fractions 0.3
    python -m experiments.filter_pruning --data FOLDER --max-steps 2 --run-dir runs/trial
    python -m experiments.filter_pruning --data FOLDER --seeds 3 --resume

FOLDER holds `weights/resnet20_cifar10.npz`, `cifar10_subset/` and `cifar10_jpeg/`. Finished cells of the table are kept in the
run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.filter_pruning import FilterPruning

main = script(__doc__, "filter_pruning.py", FilterPruning)

if __name__ == "__main__":
    main()
