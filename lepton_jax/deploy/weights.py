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
    """Round a product's weight to eight bits, symmetric, with a scale for each output; what is in steps already keeps them.

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
    outputs = outputs_of(eqn)
    rows = np.moveaxis(dense, outputs, range(len(outputs))).reshape(*(dense.shape[axis] for axis in outputs), -1)
    top = np.abs(rows).max(-1, initial=0)
    ends = np.where(found := _levels(rows.reshape(top.size, rows.shape[-1]), largest).reshape(top.shape), found, largest)
    scale = np.where(top > 0, top / ends.astype(np.float32), np.float32(1)).astype(np.float32)
    along = [dense.shape[axis] if axis in outputs else 1 for axis in range(dense.ndim)]
    scale, ends = (np.maximum(scale, np.finfo(np.float32).tiny).reshape(along), ends.reshape(along))
    codes = np.clip(np.rint(dense / scale), -ends, largest).astype(np.int8)
    return Weight(codes, scale, dense)


_FEW = 16


def _levels(rows: np.ndarray, largest: int) -> np.ndarray:
    """For each output, the fewest steps from zero to its largest weight of which all its weights are whole numbers; or 0."""
    places = rows / np.maximum(np.abs(rows).max(-1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
    found = np.zeros(len(rows), np.int64)
    for levels in (*range(1, largest + 1), 128):
        if levels <= largest + 1:
            left = np.flatnonzero(found == 0)
            left = left[_are_whole(places[left, :_FEW] * levels, largest)]
            found[left[_are_whole(places[left] * levels, largest)]] = levels
    return found


def _are_whole(places: np.ndarray, largest: int) -> np.ndarray:
    whole = np.rint(places)
    return np.all((np.abs(places - whole) < 1e-3) & (whole <= largest), -1)


def bias_codes(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A bias in steps of the products' scale, as int32; the most that fits, beyond it."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(steps, -(2**31) + 128, 2**31 - 128).astype(np.int32)
