"""Labels through reductions, windows, sorts and cumulative operations."""

from collections.abc import Sequence

from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.trace import Equation


def reduce_sum(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Drop the summed axes; one whose removed indices are not 0 is fixed, since its sum would change.

    But of one axis the removed indices may hold anything, if it is the same at all: what they add is known. Which of several
    axes that is shows once the rest of the graph has fixed the others; the analysis then starts again, if need be.
    """
    [value] = ins
    axes, key = eqn.params["axes"], (eqn.path, "sum")
    speaking = {axis: value.atoms[axis] for axis in axes if not (value.zero[axis] or labels.is_fixed(value.atoms[axis]))}
    known = {axis: atoms for axis, atoms in speaking.items() if axis in value.alike and axis not in labels.failed.get(key, ())}
    for axis in speaking.keys() - known.keys():
        labels.fix(value.atoms[axis], "reduce_sum over channels that are not 0 when masked")
    labels.sums[key] = known
    left = value.without(axes)
    # What such a sum is at the removed indices of another axis would need to be known at those of both.
    return [Axes.of(left.parts, alike=() if known else left.alike)]


def reduce_fixed(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Drop and fix the reduced axes of a maximum, product, arg-maximum..., for which 0 is no neutral element."""
    axes = eqn.params["axes"]
    for value in ins:
        for axis in axes:
            labels.fix(value.atoms[axis], eqn.primitive)
    zero = eqn.primitive in ("reduce_max", "reduce_min", "reduce_prod")
    return [_without(value, axes, keep_zero=zero) for value in ins][: len(eqn.out_avals)]


def cumulative(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axis that is accumulated along."""
    [value] = ins
    axis = eqn.params["axis"]
    labels.fix(value.atoms[axis], eqn.primitive)
    keeps = eqn.primitive in ("cumsum", "cummax", "cummin")
    return [_fixed_at(labels, value, axis, keep_zero=keeps)]


def sort(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the sorted axis and unify the others: all operands are permuted alike."""
    axis = eqn.params["dimension"]
    for value in ins:
        labels.fix(value.atoms[axis], "sort")
        for one, other in zip(ins[0].atoms, value.atoms):
            labels.pair(one, other, "sort")
    return [_fixed_at(labels, value, axis) for value in ins]


def top_k(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the ranked axis; the others pass."""
    [value] = ins
    axis = eqn.params.get("axis", -1) % len(value.atoms)
    labels.fix(value.atoms[axis], "top_k")
    count = lengths(eqn.out_avals[0].shape)[axis]
    return [_fixed_at(labels, value, axis, keep_zero=index == 0, length=count) for index in range(len(eqn.out_avals))]


def window(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Pass the axes that the window does not touch (length 1, stride 1, no padding); fix the others."""
    [value] = ins
    params = eqn.params
    parts = []
    for axis, n in enumerate(lengths(eqn.out_avals[0].shape)):
        untouched = (
            params["window_dimensions"][axis] == 1
            and params["window_strides"][axis] == 1
            and tuple(params["padding"][axis]) == (0, 0)
            and params.get("base_dilation", (1,) * (axis + 1))[axis] == 1
        )
        if not untouched:
            labels.fix(value.atoms[axis], f"the window of {eqn.primitive}")
        parts.append(value.parts[axis] if untouched else labels.still(n))
    return [Axes.of(parts)]


def _without(value: Axes, axes: Sequence[int], *, keep_zero: bool = True) -> Axes:
    return Axes.of((atoms, zero and keep_zero) for atoms, zero in value.without(axes).parts)


def _fixed_at(labels: Labels, value: Axes, axis: int, *, keep_zero: bool = True, length: int | None = None) -> Axes:
    parts = [(atoms, zero and keep_zero) for atoms, zero in value.parts]
    parts[axis] = labels.still(len(value.atoms[axis]) if length is None else length)
    return Axes.of(parts)
