"""Mixed precision."""

from lepton_jax.precision.autocast import Decision, Decisions, autocast, explain
from lepton_jax.precision.cast import cast
from lepton_jax.precision.loss_scale import (
    DynamicScale,
    LossScale,
    LossScaleState,
    NoScale,
    StaticScale,
    all_finite,
    keep_unless,
    scaled,
    unscaled,
)
from lepton_jax.precision.policy import Policy, check_backend

__all__ = [
    "Decision",
    "Decisions",
    "DynamicScale",
    "LossScale",
    "LossScaleState",
    "NoScale",
    "Policy",
    "StaticScale",
    "all_finite",
    "autocast",
    "cast",
    "check_backend",
    "explain",
    "keep_unless",
    "scaled",
    "unscaled",
]
