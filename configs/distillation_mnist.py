"""LeNet-300-100 teaches a student with a tenth of its hidden units, on MNIST, in float32 and at 4 bits.

Source: Hinton, Vinyals, Dean 2015, section 3, for soft targets and small students, and each loss's own paper; none has these
figures for this set.
Command: python -m experiments.distillation --config configs/distillation_mnist.py --seeds 3
Time: 4 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds: labels alone 96.69 %, T = 1, 2, 4, 8: 96.67, 96.62, 96.77, 96.76; DKD 96.55, FitNets 96.95, attention
transfer 96.75, RKD 96.86; at 4 bits 96.34, and 96.02, 96.32, 96.11, 96.60; teacher 98.11 %.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.distillation.rows import rows
from experiments.studies.distillation.study import Study
from lepton_jax.models import LeNet300


def get_config() -> Study:
    return Study(
        name="distillation_mnist",
        data=Tfds(name="mnist"),
        model=LeNet300(hidden=(30, 10)),
        teacher=LeNet300(),
        teacher_epochs=8,
        epochs=10,
        # The best of 1e-3, 3e-3, 6e-3 and 1.2e-2 on validation data of Fashion-MNIST, with and without distillation.
        optimizer=Adam(learning_rate=6e-3),
        rows=rows(bits=4),
    )
