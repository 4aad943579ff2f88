"""A published ResNet-20 for CIFAR-10, fine-tuned with weights and activations at 4 and 3 bits.

Source: Esser et al. 2020 (LSQ). Published for ResNet-20 at 4 bits, trained at length: PACT 90.8 %
(Choi et al. 2018), DoReFa 90.5 %.
Command: python -m experiments.qat_bits --config configs/qat_bits_resnet20.py --seeds 3
Time: 25 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds: W4A4 89.97 %, W3A3 88.40; float32 90.80 after the same two passes over 11,000 images, most of them
JPEG-compressed, which is 0.7 below the published weights as they are.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`).
"""

from experiments.common.config import Cifar10, Momentum
from experiments.studies.qat_bits import METHODS, QatBits, Row
from lepton_jax.models import ResNetCifar


def get_config() -> QatBits:
    data = Cifar10()
    return QatBits(
        name="qat_bits_resnet20",
        data=data,
        model=ResNetCifar(depth=20, shortcut="pad"),
        weights=data.folder / "weights" / "resnet20_cifar10.npz",
        scan=False,  # convolutions
        epochs=2,
        batch_size=100,
        optimizer=Momentum(learning_rate=0.01),
        rows=tuple(Row(name="lsq", bits=bits, method=METHODS["lsq"]) for bits in (4, 3)),
    )
