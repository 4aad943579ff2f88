"""A net in units: its layers' graphs optimised, its units on two devices, and trained networks cut between edge and cloud.

    python -m experiments.single_point --seeds 3
    python -m experiments.single_point --only layers units
    python -m experiments.single_point --only edge latency --tasks fashion_mnist --seeds 3
    python -m experiments.single_point --max-steps 2 --rounds 3 --test-images 50 --run-dir runs/trial
    python -m experiments.single_point --seeds 3 --resume

Layers, units and branches need no data. The edge needs Fashion-MNIST as TensorFlow Datasets prepares it, in $TFDS_DATA_DIR;
and for the task cifar10 the folder --cifar, by default the one above $TFDS_DATA_DIR, with `weights/resnet20_cifar10.npz` and
`cifar10_subset/`.

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

import os

# Branches and pipelines run on two devices; before jax is imported, a processor can be made to be two.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

from experiments.common.study import script
from experiments.studies.single_point import SinglePoint

main = script(__doc__, "single_point.py", SinglePoint)

if __name__ == "__main__":
    main()
