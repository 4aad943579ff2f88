"""Mixed precision."""

from lepton_jax.precision.all_reduce import AllReduce
from lepton_jax.precision.autocast import autocast, explain
from lepton_jax.precision.cast import cast
from lepton_jax.precision.fp8 import Amax, Fp8, init_amax, next_amax, with_amax
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
from lepton_jax.precision.remat import remat, residual_bytes
from lepton_jax.precision.rules import Decision, Decisions
from lepton_jax.precision.stochastic_rounding import StochasticRoundingState, stochastic_round, stochastic_rounding

__all__ = [
    "AllReduce",
    "Amax",
    "Decision",
    "Decisions",
    "DynamicScale",
    "Fp8",
    "LossScale",
    "LossScaleState",
    "NoScale",
    "Policy",
    "StaticScale",
    "StochasticRoundingState",
    "all_finite",
    "autocast",
    "cast",
    "check_backend",
    "explain",
    "init_amax",
    "keep_unless",
    "next_amax",
    "remat",
    "residual_bytes",
    "scaled",
    "stochastic_round",
    "stochastic_rounding",
    "unscaled",
    "with_amax",
]
