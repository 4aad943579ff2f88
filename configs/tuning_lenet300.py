"""LeNet-300-100 on Fashion-MNIST: recipes that are found within a budget, and trained as the rows of `combined` are.

The dense networks, the epochs and the rate are those of configs/combined.py, whose figures the trained rows are compared with:
63.7x smaller at 88.36 %, 38.5x at 88.86.
Source: none; no toolkit offers this table.
Command: python -m experiments.tuning --config configs/tuning_lenet300.py --seeds 3
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.tuning import Tuning, rows
from lepton_jax.models import LeNet300


def get_config() -> Tuning:
    return Tuning(
        name="tuning_lenet300",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        dense_epochs=8,
        epochs=6,
        dense_optimizer=Adam(learning_rate=3e-3),
        optimizer=Adam(learning_rate=3e-3),
        rows=rows((12, 16, 24), trained=(40, 65)),
    )
