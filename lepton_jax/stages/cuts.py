"""Where to cut a list of operations: stages of nearly equal cost, few bytes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.graph.cost import nbytes
from lepton_jax.graph.primitives import names
from lepton_jax.stages.program import Program, Var, variables_of

_SLACK = 1.15
"""A stage may cost so much more than the best bottleneck, where that saves bytes."""
_PRODUCTS = frozenset(("mul", "div", "integer_pow", "square", "dot_general", "conv_general_dilated"))
_SUMS = frozenset(("add", "sub", "add_any", "reduce_sum"))
_WRITTEN = names(
    "dot_general conv_general_dilated reduce_sum reduce_max reduce_min reduce_prod argmax argmin sort scan while cond cumsum "
    "cumprod reduce_window_max reduce_window_sum fft scatter-add top_k"
)
"""Operations that are never computed anew where their results are read."""
_SHAPES = frozenset(("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "copy", "rev", "slice"))
_FUSED = 1e15
"""A cut that may change last bits counts as so many bytes."""


def crossing_bytes(program: Program) -> np.ndarray:
    """Bytes that cross a cut before each operation, and after the last: of every value that is needed later."""
    crossing = np.zeros(len(program.operations) + 2)
    for v, there in program.born.items():
        if v in program.uses:
            crossing[there] += nbytes(v.aval)
            crossing[program.uses[v][-1] + 1] -= nbytes(v.aval)
    return np.cumsum(crossing)[:-1]


def fused_cuts(program: Program) -> np.ndarray:
    """How many values cross each cut on which last bits may depend: a product on its way into a sum, two casts, a summed value.

    A compiler that sees both sides makes one rounding of two: a multiply-add, or a cast to fewer bits and back that it leaves
    out; and it sums a value that it computes on the way in another order than one that lies in memory.
    """
    products: set[Var] = set()
    narrowed: set[Var] = set()
    passing: set[Var] = set()
    sums: dict[Var, int] = {}
    widened: dict[Var, int] = {}
    reduced: dict[Var, int] = {}
    for eqn in program.operations:
        [first, *_] = [*variables_of(eqn.invars), None]
        if eqn.primitive in _PRODUCTS or (eqn.primitive in _SHAPES and first in products):
            products.update(eqn.outvars)
        if _step(eqn) < 0 or (eqn.primitive in _SHAPES and first in narrowed):
            narrowed.update(eqn.outvars)
        if eqn.primitive not in _WRITTEN:
            passing.update(eqn.outvars)
    for place in range(len(program.operations) - 1, -1, -1):
        eqn = program.operations[place]
        shapes = eqn.primitive in _SHAPES
        for v in variables_of(eqn.invars):
            if eqn.primitive in _SUMS or (shapes and eqn.outvars[0] in sums):
                sums[v] = max(place, sums.get(v, 0))
            if _step(eqn) > 0 or (shapes and eqn.outvars[0] in widened):
                widened[v] = max(place, widened.get(v, 0))
            if eqn.primitive == "reduce_sum" or (shapes and eqn.outvars[0] in reduced):
                reduced[v] = max(place, reduced.get(v, 0))
    count = np.zeros(len(program.operations) + 2)
    for made, read in ((products, sums), (narrowed, widened), (passing, reduced)):
        for v in made & read.keys() & program.born.keys():
            count[program.born[v]] += 1
            count[read[v] + 1] -= 1
    return np.cumsum(count)[:-1]


def _step(eqn: Any) -> int:
    """Bytes that a cast adds to a floating number, or takes from it; 0 for other operations."""
    if eqn.primitive != "convert_element_type":
        return 0
    [before], [after] = eqn.in_avals, eqn.out_avals
    if not (np.issubdtype(before.dtype, np.inexact) or "float" in str(before.dtype)):
        return 0
    return int(np.dtype(after.dtype).itemsize) - int(np.dtype(before.dtype).itemsize)


def bottleneck(costs: np.ndarray, count: int) -> float:
    """The least cost of the dearest of so many contiguous stages.

    Example:
      >>> bottleneck(np.array([1.0, 1.0, 3.0, 1.0]), 2)
      4.0
    """
    ends = np.concatenate([[0.0], np.cumsum(costs)])
    best = ends.copy()  # of one stage up to each operation
    for _ in range(count - 1):
        new = best.copy()
        for end in range(1, len(ends)):
            # The dearer of two grows with the cut, the other falls: they meet where they cross.
            low, high = 0, end
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if best[middle] < ends[end] - ends[middle] else (low, middle)
            new[end] = min(max(best[cut], ends[end] - ends[cut]) for cut in (max(low - 1, 0), min(low, end)))
        best = new
    return float(best[-1])


def find_cuts(costs: Sequence[float] | np.ndarray, penalties: Sequence[float] | np.ndarray, count: int) -> tuple[int, ...]:
    """Cut a list into contiguous stages, none dearer than 1.15 times the best bottleneck, at the least penalties.

    Exact, by dynamic programming over the stages; no stage is empty.

    Args:
      costs: of the operations.
      penalties: of a cut before each operation; one more than there are operations.
      count: how many stages, at most as many as operations.

    Returns:
      the places of the ``count - 1`` cuts.

    Example:
      >>> find_cuts([1.0, 1.0, 1.0, 1.0], [9, 9, 5, 9, 9], 2)
      (2,)
    """
    size, paid = len(costs), np.asarray(penalties, float)
    ends = np.concatenate([[0.0], np.cumsum(np.asarray(costs, float))])
    limit = bottleneck(np.asarray(costs, float), count) * _SLACK + 1e-9 * ends[-1]
    total = np.full((count + 1, size + 1), np.inf)
    total[0, 0], came = 0.0, np.zeros((count + 1, size + 1), int)
    first = np.searchsorted(ends, ends - limit)
    for stage in range(1, count + 1):
        for end in range(stage, size + 1):
            window = total[stage - 1, first[end] : end]
            if window.size and np.isfinite(window).any():
                place = int(np.argmin(window))
                total[stage, end] = window[place] + (paid[end] if end < size else 0.0)
                came[stage, end] = first[end] + place
    cuts, end = [], size
    for stage in range(count, 0, -1):
        end = int(came[stage, end])
        cuts.append(end)
    return tuple(cuts[::-1][1:])


def penalties_of(program: Program) -> np.ndarray:
    """Bytes that cross each cut, and far more where last bits may depend on it; of equal cuts the later is better."""
    bytes_ = crossing_bytes(program)
    return bytes_ + _FUSED * fused_cuts(program) + np.linspace(0.5, 0.0, len(bytes_))
