"""Labels through operations that move, cut and join axes."""

from collections.abc import Sequence

import numpy as np

from lepton_jax.graph.axes.labels import Axes, Labels, all_zero, lengths
from lepton_jax.graph.trace import Equation


def broadcast_in_dim(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Pass the axes that keep their length; new ones are free, all their indices being alike."""
    value = ins[0]
    source = {out: axis for axis, out in enumerate(eqn.params["broadcast_dimensions"])}
    parts, alike = [], []
    for out, n in enumerate(lengths(eqn.params["shape"])):
        axis = source.get(out)
        if axis is not None and len(value.atoms[axis]) == n:
            parts.append(value.parts[axis])
            alike += [out] if axis in value.alike else []
        else:
            parts.append((labels.fresh(n), value.blank))
            alike += [] if value.blank else [out]
    return [Axes.of(parts, value.uniform, alike)]


def transpose(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Permute the axes."""
    return [ins[0].only(eqn.params["permutation"])]


def squeeze(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Drop axes of length 1, which are fixed."""
    [value] = ins
    dropped = eqn.params["dimensions"]
    for axis in dropped:
        labels.fix(value.atoms[axis], "squeeze")
    return [value.without(dropped)]


def rev(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Turn axes round."""
    [value] = ins
    turned = eqn.params["dimensions"]
    return [Axes(tuple(x[::-1] if a in turned else x for a, x in enumerate(value.atoms)), value.zero, value.uniform)]


def concatenate(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Join one axis and unify the others."""
    joined = eqn.params["dimension"]
    joined_parts = []
    for axis in range(len(ins[0].atoms)):
        parts = [value.atoms[axis] for value in ins]
        if axis == joined:
            # An axis of length 1 is fixed, and so is its index in the whole.
            zero = all(all_zero(labels, value.atoms[axis], value.zero[axis]) for value in ins)
            joined_parts.append((np.concatenate(parts), zero))
            continue
        for part in parts[1:]:
            labels.pair(parts[0], part, "concatenate")
        joined_parts.append((labels.best(parts), all(value.zero[axis] for value in ins)))
    return [Axes.of(joined_parts)]


def split(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Cut one axis into parts."""
    [value] = ins
    axis, outs, start = eqn.params["axis"], [], 0
    for size in lengths(eqn.params["sizes"]):
        outs.append(_cut(labels, value, axis, slice(start, start + size), "split"))
        start += size
    return outs


def stack(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Put values side by side along a new axis, which is fixed, and unify the others."""
    for value in ins[1:]:
        for one, other in zip(ins[0].atoms, value.atoms):
            labels.pair(one, other, "stack")
    parts = [(atoms, all(flags)) for atoms, *flags in zip(ins[0].atoms, *(value.zero for value in ins))]
    parts.insert(eqn.params["axis"], labels.still(len(ins)))
    return [Axes.of(parts)]


def unstack(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the axis along which a value comes apart; the others pass."""
    [value] = ins
    axis = eqn.params["axis"]
    labels.fix(value.atoms[axis], "unstack")
    return [value.without([axis])] * len(eqn.out_avals)


def tile(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Repeat the labels; an index goes from every copy."""
    [value] = ins
    atoms = tuple(np.tile(a, n) if n > 1 else a for a, n in zip(value.atoms, eqn.params["reps"]))
    return [Axes(atoms, value.zero, value.uniform)]


def slices(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Keep the labels of the indices that are kept."""
    [value] = ins
    starts, limits = lengths(eqn.params["start_indices"]), lengths(eqn.params["limit_indices"])
    strides = eqn.params["strides"] or (1,) * len(starts)
    for axis, cut in enumerate(zip(starts, limits, strides)):
        value = _cut(labels, value, axis, slice(*cut), "slice")
    return [value]


def _cut(labels: Labels, value: Axes, axis: int, cut: slice, name: str) -> Axes:
    old = value.atoms[axis]
    new = old[cut]
    if len(new) == len(old):
        return value
    if len(new) == 1:
        labels.fix(new, f"{name} of a single index")
    if len(new) <= 1 or labels.is_fixed(old):
        new = labels.fixed(len(new))
    atoms = (*value.atoms[:axis], new, *value.atoms[axis + 1 :])
    return Axes(atoms, value.zero, value.uniform)


def pad(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Put free indices around a labelled axis, fixed ones around a fixed axis; padding between indices fixes it."""
    value, filling = ins
    parts = []
    # At a removed index of one axis lies what other axes are padded with.
    stays = filling.blank or all(tuple(c) == (0, 0, 0) for c in eqn.params["padding_config"])
    for (old, flag), (low, high, interior) in zip(value.parts, eqn.params["padding_config"]):
        if (low, high, interior) == (0, 0, 0):
            parts.append((old, flag and stays))
            continue
        if interior and len(old) > 1:
            labels.fix(old, "pad between the indices")
        # Of a fixed axis (space) the padding is fixed too; but one that merely loses nothing may have padding that goes.
        if (labels.is_fixed(old) and not labels.cutting) or interior:
            parts.append(labels.still(max(0, len(old) + max(0, len(old) - 1) * interior + low + high)))
            continue
        inside = old[max(0, -low) : len(old) - max(0, -high)]
        parts.append((np.concatenate([_free(labels, low), inside, _free(labels, high)]), flag and stays))
    return [Axes.of(parts)]


def _free(labels: Labels, n: int) -> np.ndarray:
    if n <= 0:
        return labels.fixed(0)
    labels.count += n
    return np.arange(labels.count - n, labels.count)


def source(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """A constant or random array: any index may go, the rest being computed at the original shape and cut.

    The axes of random keys are fixed.
    """
    labels.fix_all(ins, eqn.primitive)
    keys = ins[0].shape if ins else ()
    out = labels.constant(lengths(eqn.out_avals[0].shape)[len(keys) :])
    return [Axes.of([*map(labels.still, keys), *out.parts])]
