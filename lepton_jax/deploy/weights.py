"""Weights in eight bits, as an engine multiplies by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lepton_jax.graph.trace import Equation


class Weight(NamedTuple):
    """A weight in eight bits: ``codes * scale``.

    Attributes:
      codes: int8, in the weight's shape.
      scale: float32, with the weight's axes, of size 1 but along its outputs.
      dense: the weight as it was.
    """

    codes: np.ndarray
    scale: np.ndarray
    dense: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        return self.scale.dtype

    def rounded(self) -> np.ndarray:
        """The numbers that it stands for."""
        return self.codes.astype(np.float32) * self.scale


def outputs_of(eqn: Equation) -> tuple[int, ...]:
    """The axes of a product's weight that are its outputs."""
    shape = eqn.in_avals[1].shape
    if eqn.primitive == "conv_general_dilated":
        return (eqn.params["dimension_numbers"].rhs_spec[0],)
    summed = eqn.params["dimension_numbers"][0][1]
    return tuple(axis for axis in range(len(shape)) if axis not in summed)


def in_codes(eqn: Equation, weight: Any, largest: int = 127) -> Weight:
    """Round a product's weight to eight bits, symmetric, with a scale for each output; what is in such codes keeps them.

    Args:
      eqn: the product.
      weight: float32.
      largest: of the codes: 63 for engines on processors that add pairs of products in 16 bits.

    Raises:
      ValueError: for weights that are not finite.
    """
    dense = np.asarray(weight, np.float32)
    if not np.isfinite(dense).all():
        where = eqn.scope or "the top"
        raise ValueError(f"place: weights must be finite; that of {eqn.primitive} at {where}, of shape {dense.shape}, is not.")
    summed = tuple(axis for axis in range(dense.ndim) if axis not in outputs_of(eqn))
    top = np.abs(dense).max(summed, keepdims=True, initial=0)
    ends = np.where(_from_the_lowest(dense, top, summed), np.float32(128), np.float32(largest)) if largest == 127 else largest
    scale = np.where(top > 0, top / np.float32(ends), np.float32(1)).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    codes = np.clip(np.rint(dense / scale), -ends, largest).astype(np.int8)
    return Weight(codes, scale, dense)


def _from_the_lowest(dense: np.ndarray, top: np.ndarray, summed: tuple[int, ...]) -> np.ndarray:
    """Which outputs are on the levels -128 to 127 already, -128 among them: they keep these codes."""
    places = dense / np.where(top > 0, top, 1) * 128
    whole = np.rint(places)
    return np.all((np.abs(places - whole) < 1e-3) & (whole <= 127), summed, keepdims=True)


def bias_codes(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A bias in steps of the products' scale, as int32; the most that fits, beyond it."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(steps, -(2**31) + 128, 2**31 - 128).astype(np.int32)
