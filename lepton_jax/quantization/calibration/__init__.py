"""Calibration: the range of values that a format shall cover, found at once or over batches."""

from lepton_jax.quantization.calibration.base import Calibration, Range
from lepton_jax.quantization.calibration.entropy import Entropy
from lepton_jax.quantization.calibration.min_max import MinMax
from lepton_jax.quantization.calibration.moving_average import MovingAverage
from lepton_jax.quantization.calibration.mse import Mse
from lepton_jax.quantization.calibration.percentile import Percentile

__all__ = ["Calibration", "Entropy", "MinMax", "MovingAverage", "Mse", "Percentile", "Range"]
