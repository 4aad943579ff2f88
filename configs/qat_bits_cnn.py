"""Three convolutions with batch norm on Fashion-MNIST, with weights and activations at 8, 4 and 2 bits.

Source: as for configs/qat_bits.py; none has these figures for this network.
Command: python -m experiments.qat_bits --config configs/qat_bits_cnn.py --seeds 3
Time: not measured on a free machine.
Aims: W8A8 within 0.2 points of float32, W4A4 (LSQ) within 0.5, W2A2 (LSQ) within 2.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.qat.rows import rows
from experiments.studies.qat.study import Study
from lepton_jax.models import CNN


def get_config() -> Study:
    return Study(
        name="qat_bits_cnn",
        data=Tfds(name="fashion_mnist"),
        model=CNN(),
        scan=False,  # convolutions
        float_epochs=4,
        epochs=2,
        float_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=1e-3),
        rows=rows(),
    )
