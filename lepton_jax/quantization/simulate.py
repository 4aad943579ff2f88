"""Dots and convolutions of integers, computed in floating point."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.native import Quantized
from lepton_jax.graph.native_dots import alike, free_expanded, outer
from lepton_jax.graph.trace import Equation
from lepton_jax.typing import Array


def exact(eqn: Equation, lhs: Quantized, rhs: Quantized) -> Array | None:
    """Return what a dot or convolution of codes gives, their sums taken in float32; None if scales stand in the way.

    ``(sum_k (a - p)(b - q)) s_a s_b``: sums of whole numbers, exact below ``2**24``, then scaled as integers' results are. So
    it equals native execution bit for bit; the operation on ``(a - p) s_a`` and ``(b - q) s_b`` rounds every product.

    Args:
      eqn: the operation.
      lhs: codes of eight bits at most.
      rhs: likewise.
    """
    if not alike(lhs, rhs):
        return None
    if eqn.primitive == "dot_general":
        numbers = eqn.params["dimension_numbers"]
        lhs, rhs = (free_expanded(side, summed) for side, summed in zip((lhs, rhs), numbers[0]))
        if any(side.scale.shape[axis] != 1 for side, summed in zip((lhs, rhs), numbers[0]) for axis in summed):
            return None
        scales = outer(lhs.scale.astype(jnp.float32), rhs.scale.astype(jnp.float32), numbers)
    else:
        numbers = eqn.params["dimension_numbers"]
        places = (numbers.lhs_spec[0], numbers.rhs_spec[0])
        if any(n != 1 for side, own in zip((lhs, rhs), places) for axis, n in enumerate(side.scale.shape) if axis != own):
            return None
        scales = _along(lhs.scale, places[0], numbers.out_spec[0]) * _along(rhs.scale, places[1], numbers.out_spec[1])
    wide: dict[str, Any] = {"preferred_element_type": np.dtype(np.float32)}
    [out] = _compat.bind(eqn.raw, [jax.lax.stop_gradient(side.integers(jnp.float32)) for side in (lhs, rhs)], **wide)
    return out * scales


def _along(scale: Array, axis: int, place: int) -> Array:
    shape = [1] * scale.ndim
    shape[place] = scale.shape[axis]
    return scale.reshape(shape).astype(jnp.float32)
