"""What removed channels hold in the masked model, where it is not 0 and the same in all: carried along in the shrunk one.

A mean that is subtracted from silent channels leaves its negative in each of them, and the sum of squares that makes a variance
counts it. The shrunk model knows that value and how many channels are gone, so its sums are those of the masked model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.graph.axes import Axes
from lepton_jax.graph.axes.labels import lengths
from lepton_jax.graph.axes.reshape import blocks
from lepton_jax.graph.trace import Equation


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Held:
    """A value, and what stands at the removed indices of some of its axes.

    Example:
      >>> held = Held(jnp.ones((2, 3)), {1: jnp.zeros((2, 1))})
      >>> held.value.shape, held.removed[1].shape
      ((2, 3), (2, 1))
    """

    value: Any
    removed: dict[int, Array] = field(default_factory=dict)
    """By axis: the value with that axis at length 1."""


def plain(value: Any) -> Any:
    """The value alone."""
    return value.value if isinstance(value, Held) else value


def with_removed(
    eqn: Equation,
    ins: Sequence[Axes],
    wanted: Sequence[int],
    values: Sequence[Any],
    out: Any,
    bind: Callable[[Sequence[Any], int], Any],
) -> Any:
    """Return a result with what stands at the removed indices of the wanted axes: the same operation on what stands there.

    Args:
      eqn: the operation.
      ins: the labels of its operands.
      wanted: axes of the result.
      values: its operands.
      out: its result.
      bind: does it on operands of which the given axis of the result has length 1.
    """
    removed = {axis: bind([_at_removed(eqn, one, value, axis) for one, value in zip(ins, values)], axis) for axis in wanted}
    return Held(out, removed) if removed else out


def added(value: Any, counts: Mapping[int, int], total: Callable[[Any], Array]) -> Array:
    """Return the sum of what is left and of what stood at the removed indices.

    Args:
      value: the summed operand.
      counts: for the axes whose removed indices are not 0: how many they are.
      total: the sum over all summed axes.
    """
    out = total(plain(value))
    for axis, count in counts.items():
        out += jnp.asarray(count, out.dtype) * total(value.removed[axis])
    return out


def _at_removed(eqn: Equation, axes: Axes, value: Any, axis: int) -> Any:
    """What an operand has where an axis of the result is removed."""
    source = _source(eqn, axes, axis)
    if source is None or len(axes.atoms[source]) == 1:
        return plain(value)
    if axes.zero[source]:
        return jnp.zeros_like(jax.lax.slice_in_dim(jnp.asarray(plain(value)), 0, 1, axis=source))
    return value.removed[source]


def _source(eqn: Equation, axes: Axes, axis: int) -> int | None:
    """The axis of an operand that is an axis of the result; None if that is new."""
    shape, params = axes.shape, eqn.params
    match eqn.primitive:
        case "broadcast_in_dim":
            dims = tuple(params["broadcast_dimensions"])
            return dims.index(axis) if axis in dims else None
        case "transpose":
            return int(params["permutation"][axis])
        case "squeeze" | "reduce_sum":
            gone = params["dimensions" if eqn.primitive == "squeeze" else "axes"]
            return [a for a in range(len(shape)) if a not in gone][axis]
        case "reshape":
            return next(old[0] for old, new in blocks(shape, lengths(eqn.out_avals[0].shape)) if new == (axis,))
    return axis if len(shape) == len(eqn.out_avals[0].shape) else None
