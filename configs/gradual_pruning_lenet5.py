"""Methods that make LeNet-5 sparse, at equal cost, against each other and the dense network, on Fashion-MNIST.

Source: Zhu and Gupta 2017, "To prune, or not to prune", whose tables compare gradual pruning with dense networks; no paper has
these figures for this set.
Command: python -m experiments.sparsity --config configs/gradual_pruning_lenet5.py --seeds 3
Time: 33 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds, two epochs: dense 88.08 %; gradual pruning with one threshold 85.95 at 90 % and 84.57 at 95 %; one shot
85.62 and 84.21; RigL, which is sparse from the start and has had no time, 81.20 and 79.01.
"""

from experiments.config import Adam, Tfds
from experiments.mask_finders import OneShot
from experiments.sparse_methods import Dense, Gradual, Rigl
from experiments.study import Row, Study
from lepton_jax.models import LeNet5


def get_config() -> Study:
    rate = Adam(learning_rate=1e-3)
    return Study(
        name="gradual_pruning_lenet5",
        data=Tfds(name="fashion_mnist"),
        model=LeNet5(),
        epochs=2,
        sparsities=(0.9, 0.95),
        scan=False,
        files=False,
        rows=(
            Row(name="dense", method=Dense(), optimizer=rate),
            Row(name="one_shot", method=OneShot(), optimizer=rate, dense_epochs=1),
            Row(name="gradual_global", method=Gradual(), optimizer=rate),
            Row(name="rigl", method=Rigl(), optimizer=rate),
        ),
    )
