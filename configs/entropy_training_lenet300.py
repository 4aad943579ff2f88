"""The coded size in the loss: LeNet-300-100 on MNIST, 4-bit weights, several rates against none at equal bytes.

Source: Oktay et al. 2020 and Wiedemann et al. 2020, for the idea; no paper has these figures.
Command: python -m experiments.entropy_training --seeds 3
Time: not yet measured.
Result: not yet run.
"""

from experiments.coded_size import EntropyTraining
from experiments.config import Adam, Tfds
from lepton_jax.models import LeNet300


def get_config() -> EntropyTraining:
    return EntropyTraining(
        name="entropy_training_lenet300",
        data=Tfds(name="mnist"),
        model=LeNet300(),
        epochs=5,
        dense_epochs=3,
        batch_size=256,
        optimizer=Adam(learning_rate=1e-3),
    )
