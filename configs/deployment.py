"""Six networks on four engines, as they are and in six smaller forms.

Source: the papers claim 4 times smaller, 2 times faster, 1 % less accurate.
Command: python -m experiments.deployment --seeds 3
Run so far: python -m experiments.deployment --only resnet20 --ways float W8A8 W4A8 --seeds 3 (8 minutes; others ran beside it).
ResNet-20 on 992 lossless test images, float 91.53 %. Weights and activations in eight bits: 91.5 % on every engine, 3.7 times
smaller, at one image 1.97 times as fast on ONNX Runtime (aim 2.3: missed), 2.54 on LiteRT (aim 3: missed; 3.00 at sixteen),
1.24 on OpenVINO. Weights of four bits by GPTQ: 91.2 %, as fast. The other networks and forms are not run at length yet.
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
