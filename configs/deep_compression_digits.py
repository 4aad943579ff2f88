"""Deep compression of a small dense network on scikit-learn's digits: the default experiment."""

from experiments.config import Adam, Config, Digits, Phase
from experiments.methods import FakeQuant, Prune, TrainedCodebook
from lepton_jax.models import LeNet300


def get_config() -> Config:
    return Config(
        name="deep_compression_digits",
        data=Digits(),
        model=LeNet300(hidden=(300, 100)),
        phases=(
            Phase(name="dense", epochs=40, optimizer=Adam(learning_rate=2e-3), l2=1e-4),
            Phase(name="pruned", epochs=160, optimizer=Adam(learning_rate=3e-3), l2=1e-4, transforms=(Prune(sparsity=0.97),)),
            Phase(
                name="quantized",
                epochs=30,
                optimizer=Adam(learning_rate=1e-3),
                transforms=(TrainedCodebook(bits=3), FakeQuant(bits=6, select=("*/bias",))),
            ),
        ),
        batch_size=64,
        scan=19,
    )
