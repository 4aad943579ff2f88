"""Deep compression of LeNet-5 on MNIST.

Source: Han, Mao, Dally 2016, table 1: 39x at 0.74 % error, paper-style bytes.
Command: python -m experiments.deep_compression --config configs/deep_compression_mnist_lenet5.py --seeds 3
Time: 14 minutes a seed on 2 busy CPU cores.
Result, mean of 3 seeds: 200.6x (157.3x with the program) at 0.70 % error, dense 0.78 %.
"""

from experiments.common.config import Adam, Config, Phase, Tfds
from experiments.common.methods import FakeQuant, LearnedStepSize, Prune
from experiments.studies.deep_compression.stages import sizes, stages_off
from lepton_jax.data import Warp
from lepton_jax.models import LeNet5

PARAMETERS = 431_080


def get_config(epochs: tuple[int, int, int] = (3, 40, 8)) -> Config:
    dense, pruned, quantized = epochs
    return Config(
        name="deep_compression_mnist_lenet5",
        data=Tfds(name="mnist"),
        model=LeNet5(),
        phases=(
            Phase(name="dense", epochs=dense, optimizer=Adam(learning_rate=1e-3), l2=1e-5),
            Phase(
                name="pruned",
                epochs=pruned,
                optimizer=Adam(learning_rate=2e-3),
                l2=1e-5,
                transforms=(Prune(sparsity=1 - 2650 / PARAMETERS, interval=50),),
            ),
            Phase(
                name="quantized",
                epochs=quantized,
                optimizer=Adam(learning_rate=1e-3),
                transforms=(LearnedStepSize(bits=3), FakeQuant(bits=6, select=("*/bias",))),
            ),
        ),
        warp=Warp(rotation_degrees=8, scale=0.08, shear=0.08, shift_pixels=0.7, elastic_alpha=0.6),
        reference="39x at 0.74 %",
        source="Han et al. 2016, table 1",
    )


def sweep() -> dict[str, Config]:
    """Every stage on and off; error against bytes; at a thirteenth of the epochs."""
    short = get_config(epochs=(1, 2, 1))
    return {**stages_off(short), **sizes(short, (0.6, 1.5, 3))}
