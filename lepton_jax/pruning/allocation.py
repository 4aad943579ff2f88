"""Allocations: how much of each leaf is removed, given how much is to be removed in all.

An allocation maps ``{path: shape}`` and the total sparsity to ``{path: sparsity}``. Settings are bound with
`functools.partial`: ``prune(0.9, allocation=partial(erk, dense="Conv_0/*"))``. One threshold for all leaves ("global") needs no
allocation: it is ``prune(..., scope="global")``. Leaves that are to stay out of the count as well are left out by ``select``.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction, collect, is_traced
from lepton_jax.core.paths import matches
from lepton_jax.core.typing import Array, Path
from lepton_jax.pruning.stacked import count

Shapes = Mapping[Path, tuple[int, ...]]
Patterns = str | tuple[str, ...]
Sparsities = dict[Path, Any]
"""Floats, or scalar arrays where the total is traced."""
Allocation = Callable[[Shapes, Any], Mapping[Path, Any]]


@checked
def uniform(shapes: Shapes, sparsity: float | Array, *, dense: Patterns = ()) -> Sparsities:
    """Remove the same fraction of every leaf.

    Args:
      shapes: by path; of a leaf that stacks weights, a `StackedShape` of one of them.
      sparsity: fraction removed in all, [0, 1); may be traced.
      dense: glob pattern(s) of leaves that lose nothing; the others lose more, so that the total stays.

    Returns:
      sparsities by path.

    Raises:
      ValueError: for a sparsity outside [0, 1), a pattern that matches nothing, or so much kept dense that the others cannot
        make up for it (what is traced is not checked).

    Example:
      >>> uniform({"a": (2, 2), "b": (8,)}, 0.5)
      {'a': 0.5, 'b': 0.5}
      >>> uniform({"a": (2, 2), "b": (8,)}, 0.5, dense="a")
      {'a': 0.0, 'b': 0.75}
    """
    kept = _kept_dense(shapes, sparsity, dense)
    if not kept:
        return dict.fromkeys(shapes, sparsity)
    sizes = {path: count(shape) for path, shape in shapes.items()}
    rest = sum(size for path, size in sizes.items() if path not in kept)
    share = sparsity * sum(sizes.values()) / max(rest, 1)
    return {path: 0.0 if path in kept else share for path in shapes}


@checked
def erk(
    shapes: Shapes, sparsity: float | Array, power: float = 1.0, *, kernel_dims: bool = True, dense: Patterns = ()
) -> Sparsities:
    """Remove less of the leaves that have few weights for their number of units (Erdos-Renyi-kernel).

    ``density = min(1, e * (sum(dims) / prod(dims)) ** power)``, with the one e for which the total is as asked: leaves that
    would be more than dense are made dense and e is solved for again on the rest, until none is. Here in closed form: leaves
    become dense in the order of that ratio, so e is the first, over how many are dense, that asks no other for more than 1.

    The sparsities meet the total exactly; each leaf's count is then rounded, so the total count is off by half a weight a leaf
    at most.

    Args:
      shapes: by path.
      sparsity: fraction removed in all, [0, 1); may be traced.
      power: 0 is uniform, 1 as in the paper.
      kernel_dims: whether all dims count (ERK), or the last two, inputs and outputs, only (ER).
      dense: glob pattern(s) of leaves that lose nothing; the others lose more, so that the total stays.

    Returns:
      sparsities by path; 0 for leaves without elements.

    Raises:
      ValueError: as `uniform`, and for a power below 0.

    Example:
      >>> erk({"a": (2, 2), "b": (8, 4)}, 0.5)
      {'a': 0.0, 'b': 0.5625}

    Source: Mocanu et al. 2018 (ER, of sparse evolutionary training); Evci et al. 2020, "Rigging the lottery", section 3(1) and
    appendix (ERK).
    """
    if not power >= 0:
        raise ValueError(f"erk: power must be 0 or more; got {power}. 1 is the paper's, 0 is uniform.")
    kept = _kept_dense(shapes, sparsity, dense)
    sizes = {path: count(shape) for path, shape in shapes.items()}
    counted = {path: shape if kernel_dims else shape[-2:] for path, shape in shapes.items() if path not in kept and sizes[path]}
    if not counted:
        return dict.fromkeys(shapes, 0.0)
    ratios = {path: (sum(dims or (1,)) / math.prod(dims)) ** power for path, dims in counted.items()}
    order = sorted(ratios, key=ratios.__getitem__, reverse=True)
    ratio, size = np.array([ratios[path] for path in order]), np.array([sizes[path] for path in order], np.float64)
    already = np.cumsum(size) - size  # by how many of the first are dense: their weights
    spread = np.cumsum((ratio * size)[::-1])[::-1]  # and what e multiplies in the rest
    numbers = jnp if isinstance(sparsity, jax.Array) else np
    total = sum(sizes.values())
    keep = total - sparsity * total - sum(sizes[path] for path in kept)
    factors = (keep - numbers.asarray(already)) / numbers.asarray(spread)
    fits = (factors * ratio <= 1) | (np.arange(len(order)) == len(order) - 1)  # the last always does, but for rounding
    factor = factors[numbers.argmax(fits)]
    removed = dict(zip(order, 1 - numbers.minimum(1, factor * ratio)))
    if numbers is np:
        removed = {path: float(value) for path, value in removed.items()}
    return {path: removed.get(path, 0.0) for path in shapes}


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Explicit:
    """Remove of each leaf what is written down for it.

    Args:
      sparsities: glob pattern or path -> fraction removed, [0, 1). The first pattern that matches a leaf is the one.

    Raises:
      ValueError: for a fraction outside [0, 1); when called, for leaves that no pattern matches, patterns that give no leaf its
        sparsity, or a total other than the one asked for (the message says what it is).

    Example:
      >>> allocate = Explicit(sparsities={"a": 0.25, "*": 0.75})
      >>> allocate({"a": (2, 2), "b": (2, 2)}, 0.5)
      {'a': 0.25, 'b': 0.75}
    """

    sparsities: Mapping[str, float]

    def __post_init__(self) -> None:
        for pattern, value in self.sparsities.items():
            check_fraction(f"Explicit: sparsities[{pattern!r}]", value)

    def __call__(self, shapes: Shapes, sparsity: float | Array) -> Sparsities:
        """Return sparsities by path; `sparsity` is what they must amount to, within 0.001 (not checked if traced)."""
        rule = {path: next((p for p in self.sparsities if matches(p, path, None, shapes)), None) for path in shapes}
        with collect("Explicit") as problems:
            problems.extend(f"{path}: no pattern matches it" for path, pattern in rule.items() if pattern is None)
            for pattern in [p for p in self.sparsities if p not in rule.values()]:
                problems.append(f"pattern {pattern!r} gives no leaf its sparsity; leaves: {', '.join(shapes) or 'none'}")
        given = {path: float(self.sparsities[pattern]) for path, pattern in rule.items() if pattern is not None}
        sizes = {path: count(shape) for path, shape in shapes.items()}
        in_all = sum(given[path] * size for path, size in sizes.items()) / max(sum(sizes.values()), 1)
        if not is_traced(sparsity) and abs(in_all - float(sparsity)) > 1e-3:
            raise ValueError(
                f"Explicit: these sparsities remove a fraction of {in_all:.6g} in all; the sparsity asked for is {sparsity}. "
                f"Write prune({in_all:.6g}, ...), or that as the target of the schedule."
            )
        return given


def _kept_dense(shapes: Shapes, sparsity: float | Array, dense: Patterns) -> set[Path]:
    """Return the leaves that `dense` names, after checking that the others can lose enough."""
    check_fraction("sparsity", sparsity)
    patterns = (dense,) if isinstance(dense, str) else tuple(dense)
    kept = {path for path in shapes if matches(patterns, path, None, shapes)}
    with collect("dense") as problems:
        for pattern in patterns:
            if not any(matches(pattern, path, None, shapes) for path in shapes):
                problems.append(f"{pattern!r} matches no leaf; the leaves are: {', '.join(shapes) or 'none'}")
    total = sum(count(shape) for shape in shapes.values())
    rest = sum(count(shape) for path, shape in shapes.items() if path not in kept)
    if kept and not is_traced(sparsity) and sparsity > 0 and sparsity * total >= rest:
        raise ValueError(
            f"dense: with {', '.join(sorted(kept))} kept, only {rest} of {total} weights can be removed, and some must stay; "
            f"a sparsity of {sparsity} asks for {round(float(sparsity) * total)}. "
            f"Keep fewer leaves dense, or ask for less than {rest / max(total, 1):.6g}."
        )
    return kept
