"""Three convolutions with batch norm on Fashion-MNIST, with weights and activations at 8, 4 and 2 bits.

Source: as for configs/qat_bits.py; none has these figures for this network.
Command: python -m experiments.qat_bits --config configs/qat_bits_cnn.py --seeds 3
Time: 62 minutes on 2 CPU cores that other work shared, 51 of them training.
Result, mean of 3 seeds, float32 91.10 %, points below it: W8A8 none; W4A4 and W2A2: LSQ 0.17 and 1.18, LSQ+ 0.14 and 1.07, PACT
0.00 and 1.85, DoReFa 0.28 and 1.74. Aims: within 0.2, 0.5 and 2 points.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`).
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.qat_bits import METHODS, QatBits, Row
from lepton_jax.models import CNN

FEW = ("lsq", "lsq_plus", "pact", "dorefa")


def get_config() -> QatBits:
    return QatBits(
        name="qat_bits_cnn",
        data=Tfds(name="fashion_mnist"),
        model=CNN(),
        scan=False,  # convolutions
        float_epochs=4,
        epochs=2,
        float_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=1e-3),
        rows=(
            Row(name="straight_through", bits=8),
            *(Row(name=name, bits=bits, method=METHODS[name]) for name in FEW for bits in (4, 2)),
        ),
    )
