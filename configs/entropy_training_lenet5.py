"""The coded size in the loss: LeNet-5 on MNIST, 4-bit weights, several rates against none at equal bytes.

Source: Oktay et al. 2020 and Wiedemann et al. 2020 (DeepCABAC), for the idea; their networks are trained for much longer.
Command: python -m experiments.entropy_training --config configs/entropy_training_lenet5.py --seeds 3
Time: 38 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds: 4 bits 151,195 bytes at 0.99 % error; rate 3e-7 138,385 at 0.99, 1e-6 63,611 at 1.20 (pruned to those
bytes 1.96), 3e-6 58,431 at 4.33; 3 bits without it 91,568 at 1.02.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`).
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.entropy_training import EntropyTraining
from lepton_jax.models import LeNet5


def get_config() -> EntropyTraining:
    return EntropyTraining(
        name="entropy_training_lenet5",
        data=Tfds(name="mnist"),
        model=LeNet5(),
        epochs=2,
        dense_epochs=2,
        batch_size=256,
        scan=False,  # convolutions
        optimizer=Adam(learning_rate=1e-3),
        rates=(3e-7, 1e-6, 3e-6),
        fewer_bits=(3,),
        sparsities=(0.8, 0.95),
    )
