"""LeNet-5 on Fashion-MNIST: recipes that are found within a budget, nothing trained after them.

Source: none; no toolkit offers this table.
Command: python -m experiments.tuning --config configs/tuning_lenet5.py --seeds 3
Time: 78 minutes on a part of one CPU core that much other work shared, 12 minutes of it of the processor.
Result, mean of 3 seeds: dense 88.11 %. 12, 16 and 24x smaller, tuned 88.00, 87.94 and 87.83 %, best uniform recipe 87.04, 76.65
and 76.13; KL 0.043, 0.016 and 0.036 of the uniform one's (aim 0.5: held, accuracy too). Bits alone have 88.00 and 88.00 % at 12
and 16x, as much as all techniques together, and are never 24x smaller; zeros alone and rank alone are none of these.
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
