"""Quantization: number formats, calibration, and training with them."""

from lepton_jax.formats import MX, Binary, Float8, Format, NormalFloat4, Ternary, Uniform, expand, mxfp4, mxfp8, scale_shape
from lepton_jax.formats.codebook import Codebook, k_means, look_up
from lepton_jax.formats.ranges import Calibration, Entropy, MinMax, MovingAverage, Mse, Percentile, TwiceMean
from lepton_jax.leaves.qarray import QArray, calibrated, dequantize, fake, quantize
from lepton_jax.quantization.activations import quantize_activations
from lepton_jax.quantization.batch_norm import re_estimate_batch_norm
from lepton_jax.quantization.batch_norm_fold import FoldedTraining
from lepton_jax.quantization.bit_schedule import BitSchedule, delayed, scheduled_quant
from lepton_jax.quantization.calibrate_activations import calibrate_activations
from lepton_jax.quantization.codebook import Centroids, CodebookState
from lepton_jax.quantization.collection import with_sites
from lepton_jax.quantization.decide import first_and_last
from lepton_jax.quantization.dorefa import DoReFa, dorefa, dorefa_gradient
from lepton_jax.quantization.entropy import entropy_bits
from lepton_jax.quantization.explain import Explanation, explain
from lepton_jax.quantization.fake_quant import fake_quant
from lepton_jax.quantization.learned_step import LearnedStep, learned_round
from lepton_jax.quantization.lsq import LearnedWeight, lsq
from lepton_jax.quantization.pact import Pact
from lepton_jax.quantization.post_training import (
    AdaRound,
    Gptq,
    LayerReport,
    Nearest,
    awq,
    awq_scale,
    compensate_errors,
    correct_biases,
    equalize,
    gptq,
    quantize_layers,
    smooth_quant,
)
from lepton_jax.quantization.quantizers import ActivationQuantizer, Dynamic, Static
from lepton_jax.quantization.rules import Operand, Rule
from lepton_jax.quantization.stochastic import stochastic_levels, stochastic_quant

__all__ = [
    "MX",
    "ActivationQuantizer",
    "AdaRound",
    "Binary",
    "BitSchedule",
    "Calibration",
    "Centroids",
    "Codebook",
    "CodebookState",
    "DoReFa",
    "Dynamic",
    "Entropy",
    "Explanation",
    "Float8",
    "FoldedTraining",
    "Format",
    "Gptq",
    "LayerReport",
    "LearnedStep",
    "LearnedWeight",
    "MinMax",
    "MovingAverage",
    "Mse",
    "Nearest",
    "NormalFloat4",
    "Operand",
    "Pact",
    "Percentile",
    "QArray",
    "Rule",
    "Static",
    "Ternary",
    "TwiceMean",
    "Uniform",
    "awq",
    "awq_scale",
    "calibrate_activations",
    "calibrated",
    "compensate_errors",
    "correct_biases",
    "delayed",
    "dequantize",
    "dorefa",
    "dorefa_gradient",
    "entropy_bits",
    "equalize",
    "expand",
    "explain",
    "fake",
    "fake_quant",
    "first_and_last",
    "gptq",
    "k_means",
    "learned_round",
    "look_up",
    "lsq",
    "mxfp4",
    "mxfp8",
    "quantize",
    "quantize_activations",
    "quantize_layers",
    "re_estimate_batch_norm",
    "scale_shape",
    "scheduled_quant",
    "smooth_quant",
    "stochastic_levels",
    "stochastic_quant",
    "with_sites",
]
