"""LeNet-300-100 on Fashion-MNIST in float32, bfloat16 and float16, the latter with every kind of loss scaling.

Source: Micikevicius et al. 2018, "Mixed precision training", whose table 1 compares accuracies in the same way, on ImageNet.
Command: python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --seeds 3
"""

from experiments.config import Adam, Tfds
from experiments.precision_rows import rows
from experiments.precision_study import Images, Study
from lepton_jax.models import LeNet300


def get_config() -> Study:
    task = Images(data=Tfds(name="fashion_mnist"), model=LeNet300(), epochs=8, optimizer=Adam(learning_rate=3e-3))
    return Study(name="mixed_precision_fashion_mnist", task=task, rows=rows())
