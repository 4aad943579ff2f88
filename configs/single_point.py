"""The papers' net of 3 convolutions, 3 pools and a dense layer in units; it, and a ResNet-20, between edge and cloud."""

from experiments.common.config import Tfds
from experiments.studies.single_point import SinglePoint


def get_config() -> SinglePoint:
    return SinglePoint(name="single_point", data=Tfds(name="fashion_mnist"), epochs=1, scan=False)
