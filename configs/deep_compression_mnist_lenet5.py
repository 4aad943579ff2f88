"""Deep compression of LeNet-5 on MNIST.

Source: Han, Mao, Dally 2016, table 1: 39x at 0.74 % error, paper-style bytes.
Command: python -m experiments.deep_compression --config configs/deep_compression_mnist_lenet5.py --seeds 3
Time: 14 minutes a seed on 2 busy CPU cores.
Result, mean of 3 seeds: 200.6x (157.3x with the program) at 0.70 % error, dense 0.78 %.
"""

from experiments.common.config import Adam, Config, Phase, Tfds
from experiments.common.methods import FakeQuant, Prune, TrainedCodebook
from experiments.studies.deep_compression.stages import sizes, stages_off
from lepton_jax.data import Warp
from lepton_jax.models import LeNet5

PARAMETERS = 431_080


def get_config() -> Config:
    return Config(
        name="deep_compression_mnist_lenet5",
        data=Tfds(name="mnist"),
        model=LeNet5(),
        phases=(
            Phase(name="dense", epochs=3, optimizer=Adam(learning_rate=1e-3), l2=1e-5),
            Phase(
                name="pruned",
                epochs=24,
                optimizer=Adam(learning_rate=2e-3),
                l2=1e-5,
                transforms=(Prune(sparsity=1 - 6500 / PARAMETERS, interval=50),),
            ),
            Phase(
                name="quantized",
                epochs=4,
                optimizer=Adam(learning_rate=3e-4),
                transforms=(TrainedCodebook(bits=3), FakeQuant(bits=6, select=("*/bias",))),
            ),
        ),
        warp=Warp(rotation_degrees=8, scale=0.08, shear=0.08, shift_pixels=0.7, elastic_alpha=0.6),
    )


def sweep() -> dict[str, Config]:
    """Every stage on and off; error against bytes."""
    return {**stages_off(get_config()), **sizes(get_config(), (0.6, 1.5, 3))}
