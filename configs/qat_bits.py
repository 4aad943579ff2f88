"""LeNet-5 on Fashion-MNIST with weights and activations at 8, 4 and 2 bits.

Source: Jacob et al. 2018 (8 bits), Esser et al. 2020 (LSQ), Bhalgat et al. 2020 (LSQ+), Choi et al. 2018 (PACT), Zhou et al.
2016 (DoReFa-Net); none has these figures for this set.
Command: python -m experiments.qat_bits --config configs/qat_bits.py --seeds 3
Time: 18 minutes for the rows straight_through and lsq, on 2 CPU cores that other work shared.
Result, mean of 3 seeds, float32 90.61 %: W8A8 0.01 points above it, W4A4 (LSQ) 0.10 below, W2A2 (LSQ) 2.13 below.
Aims: within 0.2, 0.5 and 2 points. The other rows were not run yet.
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
        float_epochs=4,
        epochs=2,
        float_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=2e-3),  # of this and 5e-4, the better on validation data at 4 and at 2 bits
        rows=rows(),
    )
