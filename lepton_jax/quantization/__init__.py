"""Quantization: number formats, calibration, and training with them."""

from lepton_jax import formats
from lepton_jax.formats import *  # noqa: F403
from lepton_jax.formats import ranges
from lepton_jax.formats.codebook import Codebook, k_means, look_up
from lepton_jax.formats.ranges import *  # noqa: F403
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantize import dequantize, quantize
from lepton_jax.leaves.rounding import calibrated, fake
from lepton_jax.quantization import post_training
from lepton_jax.quantization.activations import quantize_activations
from lepton_jax.quantization.batch_norm import re_estimate_batch_norm
from lepton_jax.quantization.batch_norm_fold import FoldedTraining
from lepton_jax.quantization.bit_schedule import BitSchedule, delayed, scheduled_quant
from lepton_jax.quantization.codebook import Centroids, CodebookState
from lepton_jax.quantization.decide import first_and_last
from lepton_jax.quantization.dorefa import DoReFa, dorefa, dorefa_gradient
from lepton_jax.quantization.entropy_penalty import entropy_bits
from lepton_jax.quantization.explain import Explanation, explain
from lepton_jax.quantization.fake_quant import fake_quant
from lepton_jax.quantization.learned_step import LearnedStep, learned_round
from lepton_jax.quantization.lsq import LearnedWeight, lsq
from lepton_jax.quantization.pact import Pact
from lepton_jax.quantization.post_training import *  # noqa: F403
from lepton_jax.quantization.quantizers import ActivationQuantizer, Dynamic, Static
from lepton_jax.quantization.rules import Operand, Rule
from lepton_jax.quantization.sites import calibrate_activations, with_sites
from lepton_jax.quantization.stochastic import stochastic_levels, stochastic_quant

__all__ = [
    "ActivationQuantizer",
    "BitSchedule",
    "Centroids",
    "Codebook",
    "CodebookState",
    "DoReFa",
    "Dynamic",
    "Explanation",
    "FoldedTraining",
    "LearnedStep",
    "LearnedWeight",
    "Operand",
    "Pact",
    "QArray",
    "Rule",
    "Static",
    "calibrate_activations",
    "calibrated",
    "delayed",
    "dequantize",
    "dorefa",
    "dorefa_gradient",
    "entropy_bits",
    "explain",
    "fake",
    "fake_quant",
    "first_and_last",
    "k_means",
    "learned_round",
    "look_up",
    "lsq",
    "quantize",
    "quantize_activations",
    "re_estimate_batch_norm",
    "scheduled_quant",
    "stochastic_levels",
    "stochastic_quant",
    "with_sites",
]
__all__ += formats.__all__ + ranges.__all__ + post_training.__all__
