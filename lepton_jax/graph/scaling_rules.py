"""How a scale of channels goes through one operation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation

_UNARY = ("convert_element_type", "copy", "copy_p", "neg", "abs", "stop_gradient", "reduce_precision", "optimization_barrier")
_SUMS = ("add", "sub", "add_any", "max", "min")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min")
_WINDOWS = ("reduce_window_sum", "reduce_window_max", "reduce_window_min")
_MOVES = ("transpose", "reshape", "squeeze", "broadcast_in_dim", "expand_dims")


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
    slot = next(iter(known))
    own = known[slot]
    name = eqn.primitive
    if name in _UNARY:
        return [{0: own, -1: own}]
    if name in _SUMS:
        return _sum(eqn, own)
    if name == "mul":
        return _product(known, fixed)
    if name == "div":
        return [{0: own, -1: own}] if slot in (0, -1) else []
    if name in _MOVES:
        return _move(eqn, slot, own)
    if name in _REDUCTIONS:
        return _reduction(eqn, slot, own)
    if name in _WINDOWS:
        still = all(eqn.params["window_dimensions"][axis] == 1 for axis in own.axes)
        return [{0: own, -1: own}] if still else []
    if name == "slice":
        still = all(eqn.in_avals[0].shape[axis] == eqn.out_avals[0].shape[axis] for axis in own.axes)
        return [{0: own, -1: own}] if still else []
    if name == "pad":
        return _pad(eqn, slot, own)
    if name == "dot_general":
        return _dot(eqn, slot, own, fixed)
    if name == "conv_general_dilated":
        return _convolution(eqn, slot, own)
    return []


def _sum(eqn: Equation, own: Channels) -> list[Option]:
    """All parts have the same factors; a zero may stay as it is."""
    option: Option = {-1: own}
    for slot, var in enumerate(eqn.invars):
        shape = eqn.in_avals[slot].shape
        if _compat.is_literal(var) and not np.any(np.asarray(_compat.literal_value(var), np.float32)):
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
    index = _onwards(eqn, into, out, own.index) if slot == 0 else _back(eqn, into, out, own.index)
    if index is None:
        return []
    other = own.moved(index)
    return [{0: own, -1: other}] if slot == 0 else [{0: other, -1: own}]


def _onwards(eqn: Equation, into: Sequence[int], out: Sequence[int], index: np.ndarray) -> np.ndarray | None:
    match eqn.primitive:
        case "transpose":
            return np.transpose(index, eqn.params["permutation"])
        case "broadcast_in_dim":
            sizes = [1] * len(out)
            for axis, target in enumerate(eqn.params["broadcast_dimensions"]):
                sizes[target] = index.shape[axis]
            return index.reshape(sizes)
        case _:
            return regrouped(index, into, out)


def _back(eqn: Equation, into: Sequence[int], out: Sequence[int], index: np.ndarray) -> np.ndarray | None:
    match eqn.primitive:
        case "transpose":
            return np.transpose(index, np.argsort(eqn.params["permutation"]))
        case "broadcast_in_dim":
            kept = eqn.params["broadcast_dimensions"]
            new = {axis for axis in range(len(out)) if axis not in kept or into[kept.index(axis)] != out[axis]}
            if any(index.shape[axis] > 1 for axis in new):
                return None
            return index.reshape([index.shape[axis] for axis in kept])
        case _:
            return regrouped(index, out, into)


def regrouped(index: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray | None:
    """Reshape channels along with a value of shape `old` that becomes `new`; axes of size 1 stay so where they can.

    Example:
      >>> regrouped(np.arange(6).reshape(1, 6), (5, 6), (5, 2, 3)).tolist()
      [[[0, 1, 2], [3, 4, 5]]]
    """
    i = j = 0
    parts: list[tuple[list[int], list[int]]] = []
    while i < len(old) or j < len(new):
        a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(a), j + len(b)
        while math.prod(old[k] for k in a) != math.prod(new[k] for k in b):
            if math.prod(old[k] for k in a) < math.prod(new[k] for k in b):
                if i == len(old):
                    return None
                a.append(i)
                i += 1
            else:
                if j == len(new):
                    return None
                b.append(j)
                j += 1
        parts.append((a, b))
    # Each run of axes is reshaped on its own: widened to its full size if channels change along it.
    full = np.asarray(index)
    for a, _ in parts:
        if any(full.shape[k] > 1 for k in a):
            full = np.broadcast_to(full, [old[k] if k in a else size for k, size in enumerate(full.shape)])
    shape = []
    for a, b in parts:
        varies = any(full.shape[k] > 1 for k in a)
        shape += [new[k] if varies else 1 for k in b]
    return full.reshape(shape)


def _reduction(eqn: Equation, slot: int, own: Channels) -> list[Option]:
    axes = tuple(eqn.params["axes"])
    if slot == 0:
        return [] if own.axes & set(axes) else [{0: own, -1: own.moved(np.squeeze(own.index, axes))}]
    return [{0: own.moved(np.expand_dims(own.index, axes)), -1: own}]


def _pad(eqn: Equation, slot: int, own: Channels) -> list[Option]:
    value = eqn.invars[1]
    zero = _compat.is_literal(value) and not np.any(np.asarray(_compat.literal_value(value), np.float32))
    still = all(tuple(eqn.params["padding_config"][axis]) == (0, 0, 0) for axis in own.axes)
    return [{0: own, -1: own}] if zero and still and slot != 1 else []


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
        return [{i: own.moved(_placed(own.index, {o: a for a, o in ends[i].items()}, len(shapes[i]))), -1: own} for i in sides]
    if not own.axes & set(contracting[slot]):
        return [{slot: own, -1: own.moved(_placed(own.index, ends[slot], rank))}]
    if own.axes & set(free[slot]):
        return []
    other = 1 - slot
    across = dict(zip([*contracting[slot], *batch[slot]], [*contracting[other], *batch[other]]))
    return [{slot: own, other: own.moved(_placed(own.index, across, len(shapes[other])), -1)}]


def _placed(index: np.ndarray, axes: Mapping[int, int], rank: int) -> np.ndarray:
    """Lay channels out along other axes; those that are not given have size 1."""
    order = sorted((axis for axis in axes if axis < index.ndim), key=lambda axis: axes[axis])
    rest = [axis for axis in range(index.ndim) if axis not in order]
    sizes = [1] * rank
    for axis in order:
        sizes[axes[axis]] = index.shape[axis]
    return np.transpose(index, (*rest, *order)).reshape(sizes)


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
