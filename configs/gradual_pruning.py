"""Methods that make LeNet-300-100 sparse in training, against each other and the dense network, on Fashion-MNIST.

Source: Zhu and Gupta 2017, "To prune, or not to prune", whose tables compare gradual pruning with dense networks; no paper has
these figures for this set.
Command: python -m experiments.sparsity --config configs/gradual_pruning.py --seeds 3
Time: not yet measured.
Result: not yet run.
"""

from experiments.config import Adam, Tfds
from experiments.sparse_methods import Dense, Gradual, OneShot
from experiments.study import Row, Study
from lepton_jax.models import LeNet300


def get_config() -> Study:
    rate = Adam(learning_rate=1e-3)
    return Study(
        name="gradual_pruning",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        epochs=10,
        rows=(
            Row(name="dense", method=Dense(), optimizer=rate),
            Row(name="one_shot", method=OneShot(), optimizer=rate, dense_epochs=4),
            Row(name="gradual_layer", method=Gradual(spread="uniform"), optimizer=rate),
            Row(name="gradual_global", method=Gradual(), optimizer=rate),
        ),
    )
