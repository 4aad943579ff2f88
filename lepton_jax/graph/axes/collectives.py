"""Labels through operations between devices, and between the parts that devices have and the whole."""

from collections.abc import Sequence

import numpy as np

from lepton_jax.graph.axes.labels import Axes, Labels, Part, lengths
from lepton_jax.graph.trace import Equation


def taken_apart(labels: Labels, value: Axes, parts: Sequence[int]) -> Axes:
    """The labels of what each device has of a value, all devices alike: the same indices go from every part.

    Args:
      labels: collects what is found.
      value: the whole.
      parts: into how many equal parts each axis is taken.
    """
    return Axes.of([_part(labels, part, n) for part, n in zip(value.parts, parts)], value.uniform)


def put_together(labels: Labels, value: Axes, parts: Sequence[int]) -> Axes:
    """The labels of the whole that the devices' parts make."""
    return Axes.of([_whole(labels, part, n) for part, n in zip(value.parts, parts)], value.uniform)


def reduced(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Sum, or take the largest or smallest, over devices: all axes pass. Axes that it names by number are dropped."""
    numbers = [int(axis) for axis in eqn.params["axes"] if isinstance(axis, int | np.integer)]
    outs = []
    for value in ins:
        for axis in numbers:
            if not (eqn.primitive.startswith("psum") and value.zero[axis]):
                labels.fix(value.atoms[axis], eqn.primitive)
        outs.append(Axes.of(value.without(numbers).parts))
    return outs


def all_gather(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Put the devices' values side by side along an axis, or along a new one, which is fixed."""
    [value], params = ins, eqn.params
    parts, axis = value.parts, params["all_gather_dimension"]
    if params["tiled"]:
        parts[axis] = _whole(labels, parts[axis], params["axis_size"])
    else:
        parts.insert(axis, labels.still(params["axis_size"]))
    return [Axes.of(parts)]


def reduce_scatter(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Sum over devices, each of which keeps a part of one axis; or one index, which fixes it."""
    [value], params = ins, eqn.params
    axis = params["scatter_dimension"]
    if params["tiled"]:
        parts = value.parts
        parts[axis] = _part(labels, parts[axis], params["axis_size"])
        return [Axes.of(parts)]
    labels.fix(value.atoms[axis], eqn.primitive)
    return [Axes.of(value.without([axis]).parts)]


def all_to_all(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axes that are split and joined; the others pass."""
    outs = []
    for value, aval in zip(ins, eqn.out_avals):
        parts = value.parts
        moved = {eqn.params["split_axis"], eqn.params["concat_axis"]}
        for axis in moved:
            labels.fix(value.atoms[axis], eqn.primitive)
        shape = lengths(aval.shape)
        outs.append(Axes.of(labels.still(n) if axis in moved else parts[axis] for axis, n in enumerate(shape)))
    return outs


def _part(labels: Labels, whole: Part, count: int) -> Part:
    atoms, zero = whole
    if count == 1:
        return whole
    first, *others = np.split(atoms, count)
    for other in others:
        labels.pair(first, other, "the parts of a sharded axis")
    if len(first) == 1:
        labels.fix(first, "a sharded axis of which a device has one index")
    return labels.still(len(first)) if len(first) == 1 or labels.is_fixed(first) else (first, zero)


def _whole(labels: Labels, part: Part, count: int) -> Part:
    atoms, zero = part
    if count == 1:
        return part
    return labels.still(count * len(atoms)) if labels.is_fixed(atoms) else (np.tile(atoms, count), zero)
