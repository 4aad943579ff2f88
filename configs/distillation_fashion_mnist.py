"""LeNet-300-100 teaches a student with a tenth of its hidden units, on Fashion-MNIST, in float32 and at 4 bits.

Source: Hinton, Vinyals, Dean 2015, section 3, for soft targets and small students, and each loss's own paper; none has these
figures for this set.
Command: python -m experiments.distillation --config configs/distillation_fashion_mnist.py --seeds 3
Time: not measured on a free machine.
Result, mean of 3 seeds, not complete (FitNets, AT, RKD, and T = 8 at 4 bits are not run):
labels alone 87.07 %, T = 2 87.11 %, T = 8
86.65 %, DKD 86.59 %; at 4 bits 86.36 %, T = 2 86.47 %, T = 4 85.85 %; teacher 88.59 %.
"""

from experiments.config import Adam, Tfds
from experiments.distillation_rows import rows
from experiments.distillation_study import Study
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
