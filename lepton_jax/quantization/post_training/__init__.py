"""Post-training quantization: from calibration batches, layer by layer, without training."""

from lepton_jax.quantization.post_training.adaround import AdaRound
from lepton_jax.quantization.post_training.awq import awq, awq_scale
from lepton_jax.quantization.post_training.bias_correction import correct_biases
from lepton_jax.quantization.post_training.equalize import equalize
from lepton_jax.quantization.post_training.error_compensation import compensate_errors, low_rank_error
from lepton_jax.quantization.post_training.gptq import Gptq, gptq
from lepton_jax.quantization.post_training.inputs import CalibratedLayers, LayerInputs, calibrate_layers
from lepton_jax.quantization.post_training.layers import LayerReport, Matrix, Method, Nearest, Reports, quantize_layers
from lepton_jax.quantization.post_training.smooth_quant import smooth_quant

__all__ = [
    "AdaRound",
    "CalibratedLayers",
    "Gptq",
    "LayerInputs",
    "LayerReport",
    "Matrix",
    "Method",
    "Nearest",
    "Reports",
    "awq",
    "awq_scale",
    "calibrate_layers",
    "compensate_errors",
    "correct_biases",
    "equalize",
    "gptq",
    "low_rank_error",
    "quantize_layers",
    "smooth_quant",
]
