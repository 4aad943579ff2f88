"""LeNet-5 on Fashion-MNIST: recipes that are found within a budget, nothing trained after them.

Source: none; no toolkit offers this table.
Command: python -m experiments.tuning --config configs/tuning_lenet5.py --seeds 3
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.tuning import Tuning, rows
from lepton_jax.models import LeNet5


def get_config() -> Tuning:
    return Tuning(
        name="tuning_lenet5",
        data=Tfds(name="fashion_mnist"),
        model=LeNet5(),
        dense_epochs=2,
        epochs=1,
        scan=False,  # convolutions
        dense_optimizer=Adam(learning_rate=1e-3),
        rows=rows((12, 16, 24)),
    )
