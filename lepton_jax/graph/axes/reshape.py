"""Labels through a reshape: one axis carries them."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.trace import Equation


def reshape(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Carry the labels through every block of axes that is merged or split.

    An index of a merged axis (heads, head size) belongs to two indices before; a label can follow only one. The first
    axis that is not fixed carries, one of variables before one of constants; the others are fixed. A carrier that turns
    out fixed is recorded in `labels.failed` by the analysis, which then starts again, and the next carries.
    """
    value, shape = ins[0], lengths(eqn.out_avals[0].shape)
    if eqn.params["dimensions"] is not None or 0 in shape:
        labels.fix_all(ins, "reshape")
        return [labels.immovable(shape)]
    parts, alike = list(map(labels.still, shape)), []
    for old, new in blocks(value.shape, shape):
        if len(old) == 1 and len(new) == 1:
            parts[new[0]] = value.parts[old[0]]
            alike += [new[0]] if old[0] in value.alike else []
            continue
        free = [a for a in old if not labels.is_fixed(value.atoms[a])]
        if not free:
            continue
        free.sort(key=lambda a: labels.is_constant(value.atoms[a]))
        key, options = (eqn.path, old), list(product(free, new))
        left = [option for option in options if option not in labels.failed.get(key, ())]
        if not left:
            for axis in free:
                labels.fix(value.atoms[axis], f"reshape, every way through which is fixed ({_reasons(labels, key)})")
            continue
        sizes, ends = tuple(len(value.atoms[a]) for a in old), tuple(shape[a] for a in new)
        spread = {a: _spread(value.atoms[a], sizes, old.index(a)) for a in free}
        # A way that couples nothing undoes an earlier reshape (heads that were folded into the batch): it comes first.
        carrier, target = min(left, key=lambda option: _couples(spread[option[0]], ends, new.index(option[1])))
        flat = spread[carrier]
        labels.reshaped(key, flat, (carrier, target), (sizes, ends, carrier, target))
        for axis in free:
            if axis != carrier:
                labels.fix(value.atoms[axis], "reshape, which another axis carries")
        parts[target] = _gather(labels, flat, ends, new.index(target)), value.zero[carrier]
    return [Axes.of(parts, value.uniform, alike)]


def blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Part two shapes of equal size into the smallest runs of axes of equal size, without axes of length 1.

    Example:
      >>> list(blocks((2, 1, 12, 5), (2, 3, 4, 5, 1)))
      [((0,), (0,)), ((2,), (1, 2)), ((3,), (3,))]
    """
    left = [a for a, n in enumerate(old) if n != 1]
    right = [a for a, n in enumerate(new) if n != 1]
    i = j = 0
    while i < len(left) and j < len(right):
        start_i, start_j = i, j
        i, j = i + 1, j + 1
        while (a := prod(old[x] for x in left[start_i:i])) != (b := prod(new[x] for x in right[start_j:j])):
            if a < b:
                i += 1
            else:
                j += 1
        yield tuple(left[start_i:i]), tuple(right[start_j:j])


def _reasons(labels: Labels, key: Any) -> str:
    return "; ".join(dict.fromkeys(labels.failed[key].values()))


def _spread(atoms: np.ndarray, lengths: Sequence[int], position: int) -> np.ndarray:
    """The labels of all elements of a block, of which one axis carries."""
    shape = [1] * len(lengths)
    shape[position] = -1
    return np.broadcast_to(atoms.reshape(shape), lengths).reshape(-1)


def _by_index(flat: np.ndarray, lengths: Sequence[int], position: int) -> np.ndarray:
    """The labels of all elements of a block, a row for each index of one axis."""
    return np.moveaxis(flat.reshape(lengths), position, 0).reshape(lengths[position], -1)


def _couples(flat: np.ndarray, lengths: Sequence[int], position: int) -> bool:
    by_index = _by_index(flat, lengths, position)
    return not (by_index == by_index[:, :1]).all()


def _gather(labels: Labels, flat: np.ndarray, lengths: Sequence[int], position: int) -> np.ndarray:
    """The labels of the one axis that carries on, unified over the others."""
    by_index = _by_index(flat, lengths, position)
    first = np.ascontiguousarray(by_index[:, 0])
    if _couples(flat, lengths, position):
        labels.pair(np.repeat(first, by_index.shape[1]), by_index.reshape(-1), "reshape")
    return first
