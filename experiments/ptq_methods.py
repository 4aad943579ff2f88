"""Post-training quantization of a classifier: every method at few bits, with 8-bit activations.

    python -m experiments.ptq_methods --data FOLDER --seeds 3
    python -m experiments.ptq_methods --config configs/ptq_methods_fashion_mnist.py --seeds 3
    python -m experiments.ptq_methods --data FOLDER --images 16 --batch-size 16 --held-out 16 --test-images 16 --only nearest

By default a ResNet-20 that others trained: FOLDER holds `weights/resnet20_cifar10.npz` and `cifar10_subset/`, and nothing is
trained. Other configs train a network first, another for every seed.
"""

from experiments.common.study import script
from experiments.studies.ptq_methods import PtqMethods

main = script(__doc__, "ptq_methods.py", PtqMethods)

if __name__ == "__main__":
    main()
