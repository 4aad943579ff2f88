"""Deep compression of LeNet-300-100 on MNIST.

Source: Han, Mao, Dally 2016, table 1: 40x at 1.58 % error, paper-style bytes.
Command: python -m experiments.deep_compression --config configs/deep_compression_mnist_lenet300.py --seeds 3
Time: 2 minutes a seed on 2 CPU cores.
Result, mean of 3 seeds: 245.8x (169.4x with the program) at 1.42 % error, dense 1.32 %.
"""

from experiments.common.config import Adam, Config, Phase, Tfds
from experiments.common.methods import FakeQuant, Prune, TrainedCodebook
from experiments.studies.deep_compression.stages import sizes, stages_off
from lepton_jax.data import Warp
from lepton_jax.models import LeNet300

PARAMETERS = 266_610


def get_config() -> Config:
    return Config(
        name="deep_compression_mnist_lenet300",
        data=Tfds(name="mnist"),
        model=LeNet300(hidden=(300, 100)),
        phases=(
            Phase(name="dense", epochs=6, optimizer=Adam(learning_rate=2e-3), l2=1e-5),
            Phase(
                name="pruned",
                epochs=65,
                optimizer=Adam(learning_rate=2e-3),
                l2=1e-5,
                transforms=(Prune(sparsity=1 - 5000 / PARAMETERS, interval=50),),
            ),
            Phase(
                name="quantized",
                epochs=20,
                optimizer=Adam(learning_rate=1e-3),
                transforms=(TrainedCodebook(bits=2), FakeQuant(bits=6, select=("*/bias",))),
            ),
        ),
        warp=Warp(rotation_degrees=8, scale=0.08, shear=0.08, shift_pixels=0.7, elastic_alpha=0.6),
        scan=50,
    )


def sweep() -> dict[str, Config]:
    """Every stage on and off; error against bytes."""
    return {**stages_off(get_config()), **sizes(get_config(), (0.6, 1.5, 3))}
