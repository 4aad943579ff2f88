"""The coded size in the loss: LeNet-300-100 on MNIST, 4-bit weights, several rates against none at equal bytes.

Source: Oktay et al. 2020 and Wiedemann et al. 2020, for the idea; no paper has these figures.
Command: python -m experiments.entropy_training --seeds 3
Time: 9 minutes of processor time for 3 seeds.
Result, mean of 3 seeds: rate 3e-7 takes the 4-bit file from 78,071 to 50,467 bytes at 2.17 % error (without: 2.15 %); 1e-6 to
41,028 bytes at 2.37 %. Larger rates do worse than magnitude pruning; see experiments/results/entropy_training_lenet300.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.coded_size import EntropyTraining
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
