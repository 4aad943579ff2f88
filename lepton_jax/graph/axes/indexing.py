"""Labels through gathers, scatters and dynamic slices."""

from collections.abc import Sequence

from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.trace import Equation


def gather(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axes that are indexed; those taken whole pass, and so do those of the indices."""
    value, indices = ins
    numbers, sizes = eqn.params["dimension_numbers"], lengths(eqn.params["slice_sizes"])
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    offsets = [a for a in range(len(value.atoms)) if a not in gone]
    whole = [a for a in offsets if sizes[a] == len(value.atoms[a])]
    for axis in set(range(len(value.atoms))) - set(whole):
        labels.fix(value.atoms[axis], "gather")
    for axis in numbers.start_indices_batching_dims:
        labels.fix(indices.atoms[axis], "gather")
    # The last axis of the indices holds the coordinates.
    labels.fix(indices.atoms[-1], "gather")
    batch, offset, parts = iter(indices.atoms[:-1]), iter(offsets), []
    for out, n in enumerate(lengths(eqn.out_avals[0].shape)):
        if out not in numbers.offset_dims:
            parts.append((next(batch), False))
            continue
        axis = next(offset)
        parts.append(value.parts[axis] if axis in whole else labels.still(n))
    return [Axes.of(parts)]


def dynamic_slice(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axes that are cut; those taken whole pass."""
    value = ins[0]
    parts = []
    for axis, n in enumerate(lengths(eqn.params["slice_sizes"])):
        whole = n == len(value.atoms[axis])
        if not whole:
            labels.fix(value.atoms[axis], "dynamic_slice")
        parts.append(value.parts[axis] if whole else labels.still(n))
    return [Axes.of(parts)]


def dynamic_update_slice(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axes that are updated in part; unify those updated whole."""
    value, update = ins[:2]
    zero = []
    for axis, (old, new) in enumerate(zip(value.atoms, update.atoms)):
        if len(old) == len(new):
            labels.pair(old, new, "dynamic_update_slice")
        else:
            labels.fix(old, "dynamic_update_slice")
            labels.fix(new, "dynamic_update_slice")
        zero.append(value.zero[axis] and update.zero[axis])
    return [Axes(value.atoms, tuple(zero))]


def scatter(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axes that are written by index or in part, and those of the indices; unify the axes updated whole."""
    value, indices, update = ins
    numbers = eqn.params["dimension_numbers"]
    labels.fix_all([indices], eqn.primitive)
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = dict(zip((a for a in range(len(value.atoms)) if a not in gone), numbers.update_window_dims))
    parts, whole = [], set[int]()
    for axis, (old, zero) in enumerate(value.parts):
        own = window.get(axis)
        if own is None or len(update.atoms[own]) != len(old):
            labels.fix(old, eqn.primitive)
            parts.append(labels.still(len(old)))
            continue
        whole.add(own)
        labels.pair(old, update.atoms[own], eqn.primitive)
        # A product with what is written stays 0; anything else has to be 0 itself.
        kept = zero and (update.zero[own] or eqn.primitive == "scatter-mul")
        parts.append((labels.best([old, update.atoms[own]]), kept))
    for axis in set(range(len(update.atoms))) - whole:
        labels.fix(update.atoms[axis], eqn.primitive)
    return [Axes.of(parts)]
