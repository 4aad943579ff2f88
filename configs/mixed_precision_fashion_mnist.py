"""LeNet-300-100 on Fashion-MNIST in float32, bfloat16 and float16, the latter with every kind of loss scaling.

Source: Micikevicius et al. 2018, "Mixed precision training", whose table 1 compares accuracies in the same way, on ImageNet.
Command: python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --seeds 3
Time: 3 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds: float32 89.10 %, bfloat16 89.17, float16 unscaled 89.16, with a static scale 89.05, with a dynamic one
89.10 (12 or 13 steps skipped); the seeds of one precision differ by 0.04 to 0.17.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.mixed_precision import Images, MixedPrecision, Row
from lepton_jax.models import LeNet300
from lepton_jax.precision import DynamicScale, NoScale, Policy, StaticScale

# The reference first. A period of dynamic scaling that a short run goes through.
HALF = Policy(compute_dtype="float16")
ROWS = (
    Row(name="float32"),
    Row(name="bfloat16", policy=Policy(compute_dtype="bfloat16")),
    Row(name="float16_unscaled", policy=HALF, loss_scale=NoScale()),
    Row(name="float16_static", policy=HALF, loss_scale=StaticScale(scale=2.0**10)),
    Row(name="float16_dynamic", policy=HALF, loss_scale=DynamicScale(period=200)),
)


def get_config() -> MixedPrecision:
    task = Images(data=Tfds(name="fashion_mnist"), model=LeNet300(), epochs=8, optimizer=Adam(learning_rate=3e-3))
    return MixedPrecision(name="mixed_precision_fashion_mnist", task=task, rows=ROWS)
