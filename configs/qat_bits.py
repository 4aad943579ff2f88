"""LeNet-5 on Fashion-MNIST with weights and activations at 8, 4 and 2 bits.

Source: Jacob et al. 2018 (8 bits), Esser et al. 2020 (LSQ), Bhalgat et al. 2020 (LSQ+), Choi et al. 2018 (PACT), Zhou et al.
2016 (DoReFa-Net); none has these figures for this set.
Command: python -m experiments.qat_bits --config configs/qat_bits.py --seeds 3
Time: not measured on a free machine.
Aims: W8A8 within 0.2 points of float32, W4A4 (LSQ) within 0.5, W2A2 (LSQ) within 2.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.qat.rows import rows
from experiments.studies.qat.study import Study
from lepton_jax.models import LeNet5


def get_config() -> Study:
    return Study(
        name="qat_bits",
        data=Tfds(name="fashion_mnist"),
        model=LeNet5(),
        scan=False,  # convolutions
        float_epochs=6,
        epochs=3,
        float_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=5e-4),
        rows=rows(),
    )
