"""Calibration: the range of values that a format shall cover."""

from lepton_jax.quantization.calibration import Calibration, MinMax

__all__ = ["Calibration", "MinMax"]
