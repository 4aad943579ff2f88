"""Calibration: the range of values that a format shall cover, found at once or over batches."""

from lepton_jax.formats.ranges.base import Calibration, Range
from lepton_jax.formats.ranges.entropy import Entropy
from lepton_jax.formats.ranges.min_max import MinMax
from lepton_jax.formats.ranges.moving_average import MovingAverage
from lepton_jax.formats.ranges.mse import Mse
from lepton_jax.formats.ranges.percentile import Percentile
from lepton_jax.formats.ranges.twice_mean import TwiceMean

__all__ = ["Calibration", "Entropy", "MinMax", "MovingAverage", "Mse", "Percentile", "Range", "TwiceMean"]
