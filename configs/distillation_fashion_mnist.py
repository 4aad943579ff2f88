"""LeNet-300-100 teaches a student with a tenth of its hidden units, on Fashion-MNIST, in float32 and at 4 bits.

Source: Hinton, Vinyals, Dean 2015, section 3, for soft targets and small students, and each loss's own paper; none has these
figures for this set.
Command: python -m experiments.distillation --config configs/distillation_fashion_mnist.py --seeds 3
Time: 3 minutes on 2 CPU cores.
Result, mean of 3 seeds: labels alone 87.07 %, T = 1, 2, 4, 8: 87.02, 87.11, 86.83, 86.65; DKD 86.59, FitNets 87.79, attention
transfer 87.42, RKD 86.68; at 4 bits 86.36, and 85.64, 86.47, 85.85, 86.14; teacher 88.59 %.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.distillation.rows import rows
from experiments.studies.distillation.study import Study
from lepton_jax.models import LeNet300


def get_config() -> Study:
    return Study(
        name="distillation_fashion_mnist",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(hidden=(30, 10)),
        teacher=LeNet300(),
        teacher_epochs=8,
        epochs=10,
        # The best of 1e-3, 3e-3, 6e-3 and 1.2e-2 on validation data of Fashion-MNIST, with and without distillation.
        optimizer=Adam(learning_rate=6e-3),
        rows=rows(bits=4),
    )
