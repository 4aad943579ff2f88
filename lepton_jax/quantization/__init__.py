"""Quantization: number formats, calibration, and training with them."""

from lepton_jax.quantization.calibrate import Calibration, MinMax
from lepton_jax.quantization.codebook import Centroids, Codebook, CodebookState, k_means, look_up
from lepton_jax.quantization.entropy import entropy_bits
from lepton_jax.quantization.fake_quant import fake_quant
from lepton_jax.quantization.formats import Format, Uniform, expand, scale_shape
from lepton_jax.quantization.numerics import QArray, calibrated, dequantize, fake, quantize

__all__ = [
    "Calibration",
    "Centroids",
    "Codebook",
    "CodebookState",
    "Format",
    "MinMax",
    "QArray",
    "Uniform",
    "calibrated",
    "dequantize",
    "entropy_bits",
    "expand",
    "fake",
    "fake_quant",
    "k_means",
    "look_up",
    "quantize",
    "scale_shape",
]
