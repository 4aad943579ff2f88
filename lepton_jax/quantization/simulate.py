"""Dots and convolutions of integers, computed in floating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.formats import Uniform
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import CallPath, Equation, Traced
from lepton_jax.native.dots import alike, free_expanded, outer
from lepton_jax.native.operands import Quantized

if TYPE_CHECKING:
    from lepton_jax.quantization.rules import Operand

_INT8 = Uniform(8)


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


def casts_of_integers(traced: Traced, decided: Mapping[CallPath, Sequence[Operand]]) -> set[CallPath]:
    """Return the casts of int8 weights to floats for dots and convolutions whose other operand is rounded.

    They are what `packed` makes of a packed leaf that meets a float; the integers themselves can be multiplied.

    Args:
      traced: the graph.
      decided: what is done to its operands.
    """
    casts = {
        (eqn.jaxpr_path, eqn.outvars[0]): eqn.path
        for eqn in traced.equations()
        if eqn.primitive == "convert_element_type" and eqn.in_avals[0].dtype == jnp.int8
    }
    found = set()
    for eqn in traced.equations():
        operands = decided.get(eqn.path, ())
        if len(operands) == 2 and any(operand.quantizer is not None for operand in operands):
            for operand, var in zip(operands, eqn.invars):
                if operand.kind == "weight" and not _compat.is_literal(var):
                    found.add(casts.get((eqn.jaxpr_path, var)))
    return {path for path in found if path is not None}


def integers(value: Array, dtype: Any) -> Quantized:
    """Return int8 numbers as codes of scale one."""
    scale = jnp.ones((1,) * value.ndim, jnp.float32)
    return Quantized(value, scale, (), (), _INT8, 0, jnp.dtype(dtype).name, "")
