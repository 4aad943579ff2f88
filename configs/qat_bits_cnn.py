"""Three convolutions with batch norm on Fashion-MNIST, with weights and activations at 8, 4 and 2 bits.

Source: as for configs/qat_bits.py; none has these figures for this network.
Command: python -m experiments.qat_bits --config configs/qat_bits_cnn.py --seeds 3
Time: 32 minutes for the rows straight_through and lsq, on 2 CPU cores that other work shared.
Result, mean of 3 seeds, float32 91.10 %: W8A8 0.01 points above it, W4A4 (LSQ) 0.17 below, W2A2 (LSQ) 1.18 below.
Aims: within 0.2, 0.5 and 2 points. The rows lsq_plus, pact and dorefa were not run yet.
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
