"""Reference models in Flax Linen: plain, readable, with configurable widths."""

from lepton_jax.models.lenet5 import LeNet5
from lepton_jax.models.lenet_300_100 import LeNet300

__all__ = ["LeNet5", "LeNet300"]
