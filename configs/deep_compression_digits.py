"""Deep compression of a small dense network on scikit-learn's digits: the default experiment.

Source: the procedure of Han, Mao, Dally 2016; the paper has no figure for this set.
Command: python -m experiments.deep_compression --seeds 3
Time: 34 s cold, 20 s warm on 2 CPU cores.
Result, mean of 3 seeds: 84.3x (77.0x with the program) at 2.59 % error, dense 2.78 %.
"""

from experiments.common.config import Adam, Config, Digits, Phase
from experiments.common.methods import FakeQuant, Prune, TrainedCodebook
from experiments.studies.deep_compression.stages import sizes, stages_off
from lepton_jax.data import Warp
from lepton_jax.models import LeNet300

PARAMETERS = 50_610


def get_config(nonzeros: int = 2700, bits: int = 2) -> Config:
    return Config(
        name="deep_compression_digits",
        data=Digits(),
        model=LeNet300(hidden=(300, 100)),
        phases=(
            Phase(name="dense", epochs=60, optimizer=Adam(learning_rate=2e-3), l2=1e-4),
            Phase(
                name="pruned",
                epochs=220,
                optimizer=Adam(learning_rate=2e-3),
                l2=1e-4,
                transforms=(Prune(sparsity=1 - nonzeros / PARAMETERS),),
            ),
            Phase(
                name="quantized",
                epochs=60,
                optimizer=Adam(learning_rate=1e-3),
                transforms=(TrainedCodebook(bits=bits), FakeQuant(bits=6, select=("*/bias",))),
            ),
        ),
        batch_size=64,
        warp=Warp(rotation_degrees=4, scale=0.04, shear=0.04, shift_pixels=0.25, elastic_alpha=0.12, elastic_sigma=2, count=64),
        scan=19,
    )


def sweep() -> dict[str, Config]:
    """Every stage on and off; error against bytes."""
    return {**stages_off(get_config()), **sizes(get_config(), (0.5, 2, 4)), "1500x3": get_config(nonzeros=1500, bits=3)}
