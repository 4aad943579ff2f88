"""The coded size in the loss: LeNet-300-100 on MNIST, 4-bit weights, several rates against none at equal bytes.

Source: Oktay et al. 2020 and Wiedemann et al. 2020, for the idea; no paper has these figures.
Command: python -m experiments.entropy_training --config configs/entropy_training_lenet300.py --seeds 3
Time: 25 minutes on 2 CPU cores that much other work shared.
Result, mean of 3 seeds: rate 3e-7 takes the 4-bit file from 80,074 to 50,442 bytes at 2.13 % error (without: 2.15 %), 1e-6 to
38,603 at 2.36 %; but without it 3 bits have 44,434 bytes at 2.23 %, 2 bits 12,010 at 2.30 (in the narrow range, which leaves
one of their four levels unused, 4.16), and larger rates do worse than pruning at equal bytes. A probable cause, not tested: the
grid follows the largest weight, which the penalty pulls in too, so that it shrinks as they do.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.entropy_training import EntropyTraining
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
