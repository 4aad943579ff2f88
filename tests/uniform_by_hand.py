"""Uniform rounding written down from its definition, in numpy: the reference of many tests."""

from typing import Any

import numpy as np

from lepton_jax.quantization import Uniform


def steps(fmt: Uniform) -> float:
    """What the width of a range is divided by."""
    if not fmt.symmetric or not fmt.signed:
        return 2**fmt.bits - 1
    return 2 ** (fmt.bits - 1) - (1 if fmt.narrow_range else 0.5)


def ends(fmt: Uniform) -> tuple[int, int]:
    """The lowest and the highest integer."""
    if not fmt.signed:
        return 0, 2**fmt.bits - 1
    half = 2 ** (fmt.bits - 1)
    return -half + int(fmt.narrow_range), half - 1


def scale_of(low: Any, high: Any, fmt: Uniform) -> np.ndarray:
    """The scale that covers a range: a product in float32, as every scale is, then float64."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    width = high - low if not fmt.symmetric else np.maximum(-low, high) if fmt.signed else high
    return np.asarray(np.float32(width) * np.float32(1 / steps(fmt)), np.float64)


def codes_of(x: np.ndarray, scale: Any, zero: Any, fmt: Uniform) -> np.ndarray:
    """The nearest integers, float64.

    The lowest value of a full symmetric range lies half-way between two levels: it is the lower one.
    """
    place, (low, high) = x / scale, ends(fmt)
    full = fmt.symmetric and fmt.signed and not fmt.narrow_range
    place = np.where(full & (place <= -steps(fmt) * (1 - 2.0**-20)), low, place)
    return np.clip(np.round(place) + zero, low, high)


def rounded(x: np.ndarray, fmt: Uniform, axes: Any = None, low: Any = None, high: Any = None) -> np.ndarray:
    """Quantized and dequantized, with a range of its own over `axes` (None: all), or a given one; float64."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    low = np.minimum(x.min(axes, keepdims=True), 0) if low is None else low
    high = np.maximum(x.max(axes, keepdims=True), 0) if high is None else high
    scale, (q_low, q_high) = scale_of(low, high, fmt), ends(fmt)
    zero = 0 if fmt.symmetric else np.clip(np.round(-low / scale) + q_low, q_low, q_high)
    return (codes_of(x, scale, zero, fmt) - zero) * scale
