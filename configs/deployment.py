"""Six networks on four engines, as they are and in six smaller forms.

Source: the papers claim 4 times smaller, 2 times faster, 1 % less accurate.
Command: python -m experiments.deployment --seeds 3
Not run at length yet.
"""

from experiments.common.char_lm import CharLM
from experiments.common.config import Cifar10, Fsdd, Tfds
from experiments.studies.deployment import Deployment
from experiments.studies.deployment.networks import Row
from lepton_jax.models import CNN, LeNet5, ResNet, ResNetCifar


def get_config() -> Deployment:
    fashion = Tfds(name="fashion_mnist")
    rows = (
        Row(name="lenet5", kind="trained", model=LeNet5(), data=fashion, epochs=3),
        Row(name="three_convolutions", kind="trained", model=CNN(), data=fashion, epochs=3),
        Row(name="resnet20", kind="published", model=ResNetCifar(depth=20, shortcut="pad"), data=Cifar10(jpeg=0)),
        Row(name="resnet18", kind="random", model=ResNet(classes=10, stem="small"), shape=(32, 32, 3)),
        Row(name="characters", kind="characters", model=CharLM(steps=600)),
        Row(name="spoken_digits", kind="trained", model=CNN(), data=Fsdd(), epochs=12),
    )
    return Deployment(name="deployment_engines", rows=rows)
