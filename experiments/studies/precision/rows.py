"""The precisions of the studies of mixed precision."""

from experiments.studies.precision.study import Row
from lepton_jax.precision import DynamicScale, NoScale, Policy, StaticScale


def rows() -> tuple[Row, ...]:
    """Return float32, bfloat16, and float16 with each kind of loss scaling; a period that a short run goes through."""
    half = Policy(compute_dtype="float16")
    return (
        Row(name="float32"),
        Row(name="bfloat16", policy=Policy(compute_dtype="bfloat16")),
        Row(name="float16_unscaled", policy=half, loss_scale=NoScale()),
        Row(name="float16_static", policy=half, loss_scale=StaticScale(scale=2.0**10)),
        Row(name="float16_dynamic", policy=half, loss_scale=DynamicScale(period=200)),
    )
