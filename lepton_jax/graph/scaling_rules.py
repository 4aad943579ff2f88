"""How a scale of channels goes through one operation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.affine import placed
from lepton_jax.graph.axes.reshape import blocks
from lepton_jax.graph.primitives import PASSING, names
from lepton_jax.graph.trace import Equation

_UNARY = PASSING | names("neg abs reduce_precision")
_SUMS = names("add sub add_any max min")
_REDUCTIONS = names("reduce_sum reduce_max reduce_min")
_WINDOWS = names("reduce_window_sum reduce_window_max reduce_window_min")
_MOVES = names("transpose reshape squeeze broadcast_in_dim expand_dims")


@dataclass(frozen=True, eq=False)
class Channels:
    """Which channel's factor multiplies (sign 1) or divides (-1) each entry of a value.

    Args:
      index: integers with as many axes as the value, of its size or of size 1 in each.
      sign: 1 or -1.
    """

    index: np.ndarray
    sign: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channels) and self.sign == other.sign and np.array_equal(self.index, other.index)

    __hash__ = None  # type: ignore[assignment]

    @property
    def axes(self) -> set[int]:
        """The axes along which channels change."""
        return {axis for axis, size in enumerate(self.index.shape) if size > 1}

    def moved(self, index: np.ndarray, sign: int = 1) -> "Channels":
        """The same channels, laid out otherwise."""
        return Channels(index, self.sign * sign)


Option = dict[int, Channels]
"""Slot -> channels, of every scaled operand (0, 1, ...) and result (-1) of an operation; all others stay as they are."""


def alternatives(eqn: Equation, known: Mapping[int, Channels], fixed: Sequence[bool]) -> list[Option]:
    """Return the ways in which an operation still gives what it gave, times factors, once some of its values have factors.

    Args:
      eqn: the operation.
      known: what is scaled already, by slot.
      fixed: which operands depend on variables alone; these are the first choice.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> [eqn] = trace(lambda v, x: x @ v, jnp.ones((3, 2)), jnp.ones((5, 3))).equations()
      >>> [option] = alternatives(eqn, {0: Channels(np.array([[0, 1, 2]]), 1)}, [False, True])
      >>> option[1].sign, option[1].index.tolist(), -1 in option
      (-1, [[0], [1], [2]], False)
    """
    slot, own = next(iter(known.items()))
    name, through = eqn.primitive, [{0: own, -1: own}]
    if name in _UNARY:
        return through
    if name in _SUMS:
        return _sum(eqn, own)
    if name == "mul":
        return _product(known, fixed)
    if name == "div":
        return through if slot in (0, -1) else []
    if name in _MOVES:
        return _move(eqn, slot, own)
    if name in _REDUCTIONS:
        return _reduction(eqn, slot, own)
    if name in _WINDOWS:
        return through if all(eqn.params["window_dimensions"][axis] == 1 for axis in own.axes) else []
    if name == "slice":
        into, out = eqn.in_avals[0].shape, eqn.out_avals[0].shape
        return through if all(into[axis] == out[axis] for axis in own.axes) else []
    if name == "pad":
        return through if slot != 1 and _pads_zeros(eqn, own) else []
    if name == "dot_general":
        return _dot(eqn, slot, own, fixed)
    return _convolution(eqn, slot, own) if name == "conv_general_dilated" else []


def _sum(eqn: Equation, own: Channels) -> list[Option]:
    """All parts have the same factors; a zero may stay as it is."""
    option: Option = {-1: own}
    for slot, var in enumerate(eqn.invars):
        shape = eqn.in_avals[slot].shape
        if _is_zero(var):
            continue
        if len(shape) != own.index.ndim or any(shape[axis] == 1 for axis in own.axes):
            return []
        option[slot] = own
    return [option]


def _product(known: Mapping[int, Channels], fixed: Sequence[bool]) -> list[Option]:
    slot = next(iter(known))
    own = known[slot]
    if slot < 0:
        order = sorted((0, 1), key=lambda i: not fixed[i])
        given = [i for i in order if i in known]
        return [{i: own, -1: own} for i in (given or order)]
    away: Option = {slot: own, 1 - slot: own.moved(own.index, -1)}
    return [{slot: own, -1: own}, *([away] if fixed[1 - slot] else [])]


def _move(eqn: Equation, slot: int, own: Channels) -> list[Option]:
    """Reshapes, transposes and broadcasts, in either direction."""
    into, out = eqn.in_avals[0].shape, eqn.out_avals[0].shape
    index = _moved(eqn, own.index, *((into, out) if slot == 0 else (out, into)), back=slot != 0)
    if index is None:
        return []
    return [{0: own, -1: own.moved(index)}] if slot == 0 else [{0: own.moved(index), -1: own}]


def _moved(eqn: Equation, index: np.ndarray, old: Sequence[int], new: Sequence[int], back: bool) -> np.ndarray | None:
    match eqn.primitive:
        case "transpose":
            order = eqn.params["permutation"]
            return np.transpose(index, np.argsort(order) if back else order)
        case "broadcast_in_dim" if back:
            kept = eqn.params["broadcast_dimensions"]
            widened = [axis for axis in range(len(old)) if axis not in kept or new[kept.index(axis)] != old[axis]]
            if any(index.shape[axis] > 1 for axis in widened):
                return None
            return index.reshape([index.shape[axis] for axis in kept])
        case "broadcast_in_dim":
            return placed(index, dict(enumerate(eqn.params["broadcast_dimensions"])), len(new))
    return regrouped(index, old, new)


def regrouped(index: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Reshape channels along with a value of shape `old` that becomes `new`; axes of size 1 stay so where they can.

    Example:
      >>> regrouped(np.arange(6).reshape(1, 6), (5, 6), (5, 2, 3)).tolist()
      [[[0, 1, 2], [3, 4, 5]]]
    """
    # Each run of axes is reshaped on its own: widened to its full size if channels change along it.
    full, shape = np.asarray(index), [1] * len(new)
    for before, after in blocks(old, new):
        if any(full.shape[axis] > 1 for axis in before):
            full = np.broadcast_to(full, [old[axis] if axis in before else size for axis, size in enumerate(full.shape)])
            for axis in after:
                shape[axis] = new[axis]
    return full.reshape(shape)


def _reduction(eqn: Equation, slot: int, own: Channels) -> list[Option]:
    axes = tuple(eqn.params["axes"])
    if slot == 0:
        return [] if own.axes & set(axes) else [{0: own, -1: own.moved(np.squeeze(own.index, axes))}]
    return [{0: own.moved(np.expand_dims(own.index, axes)), -1: own}]


def _pads_zeros(eqn: Equation, own: Channels) -> bool:
    still = all(tuple(eqn.params["padding_config"][axis]) == (0, 0, 0) for axis in own.axes)
    return still and _is_zero(eqn.invars[1])


def _is_zero(atom: Any) -> bool:
    return _compat.is_literal(atom) and not np.any(np.asarray(_compat.literal_value(atom), np.float32))


def _dot(eqn: Equation, slot: int, own: Channels, fixed: Sequence[bool]) -> list[Option]:
    contracting, batch = eqn.params["dimension_numbers"]
    shapes = [aval.shape for aval in eqn.in_avals]
    free = [[axis for axis in range(len(shapes[i])) if axis not in (*contracting[i], *batch[i])] for i in (0, 1)]
    rank = len(eqn.out_avals[0].shape)
    first = [len(batch[0]), len(batch[0]) + len(free[0])]
    # For each operand: its axes, and where they are in the result.
    heads = range(len(batch[0]))
    ends = [dict(zip([*batch[i], *free[i]], [*heads, *range(first[i], first[i] + len(free[i]))])) for i in (0, 1)]
    if slot < 0:
        sides = [i for i in sorted((0, 1), key=lambda i: not fixed[i]) if own.axes <= set(ends[i].values())]
        return [{i: own.moved(placed(own.index, {o: a for a, o in ends[i].items()}, len(shapes[i]))), -1: own} for i in sides]
    if not own.axes & set(contracting[slot]):
        return [{slot: own, -1: own.moved(placed(own.index, ends[slot], rank))}]
    if own.axes & set(free[slot]):
        return []
    other = 1 - slot
    across = dict(zip([*contracting[slot], *batch[slot]], [*contracting[other], *batch[other]]))
    return [{slot: own, other: own.moved(placed(own.index, across, len(shapes[other])), -1)}]


def _convolution(eqn: Equation, slot: int, own: Channels) -> list[Option]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    lhs, kernel = eqn.in_avals[0].shape, eqn.in_avals[1].shape
    if eqn.params["batch_group_count"] != 1:
        return []
    outs, ins = numbers.rhs_spec[0], numbers.rhs_spec[1]
    feature, result = numbers.lhs_spec[1], numbers.out_spec[1]
    rank = len(kernel)

    def along(values: np.ndarray, axis: int) -> np.ndarray:
        return values.reshape([values.size if a == axis else 1 for a in range(rank)])

    if slot < 0:
        return [{1: own.moved(along(own.index.reshape(-1), outs)), -1: own}] if own.axes <= {result} else []
    if slot == 1 and own.axes <= {outs}:
        return [{1: own, -1: own.moved(along(own.index.reshape(-1), result))}]
    if slot == 0 and own.axes <= {feature}:
        flat = np.broadcast_to(own.index.reshape(-1), (lhs[feature],)).reshape(groups, 1, -1)
        each = np.broadcast_to(flat, (groups, kernel[outs] // groups, kernel[ins])).reshape(kernel[outs], kernel[ins])
        if groups == 1:
            return [{0: own, 1: own.moved(along(each[0], ins), -1)}]
        matrix = each if outs < ins else each.T
        sizes = [kernel[axis] if axis in (outs, ins) else 1 for axis in range(rank)]
        return [{0: own, 1: own.moved(matrix.reshape(sizes), -1)}]
    if slot == 1 and groups == 1 and own.axes <= {ins}:
        return [{1: own, 0: own.moved(along(own.index.reshape(-1), feature), -1)}]
    return []
