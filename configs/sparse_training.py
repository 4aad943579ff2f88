"""SET, RigL and static sparse training of LeNet-300-100 at equal cost, on Fashion-MNIST.

Source: Evci et al. 2020, "Rigging the lottery", figure 2 and table 2, for the form (static below SET below RigL); no paper has
these figures for this set.
Command: python -m experiments.sparsity --config configs/sparse_training.py --seeds 3
Time: not yet measured.
Result: not yet run.
"""

from experiments.config import Adam, Tfds
from experiments.mask_finders import Static
from experiments.sparse_methods import Dense, Rigl, Set
from experiments.study import Row, Study
from lepton_jax.models import LeNet300


def get_config() -> Study:
    rate = Adam(learning_rate=6e-3, by_weight=True)  # of 1e-3, 3e-3 and 6e-3 the best on validation data for all three
    return Study(
        name="sparse_training",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        epochs=10,
        files=False,
        sparsities=(0.9, 0.95, 0.98),
        rows=(
            Row(name="dense", method=Dense(), optimizer=Adam(learning_rate=1e-3)),
            Row(name="static", method=Static(), optimizer=rate),
            Row(name="set", method=Set(), optimizer=rate),
            Row(name="rigl", method=Rigl(), optimizer=rate),
        ),
    )
