"""Statistics of what a layer is fed, a few examples at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.layout import Use, input_rows
from lepton_jax.graph.passage import Passage, Values
from lepton_jax.graph.programs import run_shared
from lepton_jax.graph.trace import Equation

Add = Callable[[PyTree, Array, Array | None], PyTree]
"""(totals, rows, rows of another model or None) -> totals; rows are (*stacked, rows, inputs), see `Use.rows`."""

_IN_CACHE = 2**18
"""How many numbers of patches are worked on at a time."""


def gathered(passage: Passage, path: Path, add: Add, totals: PyTree, given: Values, other: Values | None = None) -> PyTree:
    """Add what a layer is fed, by all its uses, to totals.

    Args:
      passage: through the model.
      path: of the layer's weight.
      add: what is added.
      totals: arrays.
      given: what `Track.at` yields.
      other: the same, of another model of the same graph.

    Example:
      >>> from lepton_jax.graph.passage import Track
      >>> v = {"w": jnp.eye(2)}
      >>> [(passage, given)] = Track(lambda v, x: x @ v["w"], v, [(jnp.ones((3, 2)),)], ["w"]).at("w", v)
      >>> gathered(passage, "w", lambda totals, rows, _: totals + rows.sum(-2), jnp.zeros(2), given).tolist()
      [3.0, 3.0]
    """
    return run_shared(_gathered, (passage, path, add), totals, given, other)


def _gathered(passage: Passage, path: Path, add: Add, totals: PyTree, given: Values, other: Values | None) -> PyTree:
    mine = passage.inputs_of(path, given)
    others = [None] * len(mine) if other is None else passage.inputs_of(path, other)
    for use, x, r in zip(passage.uses[path], mine, others):
        totals = _by_parts(use, passage.equations[use.operation], add, totals, x, r)
    return totals


def _by_parts(use: Use, eqn: Equation, add: Add, totals: PyTree, x: Array, r: Array | None) -> PyTree:
    """Patches are many times the images: a few examples at a time, they stay in the cache."""

    def once(totals: PyTree, parts: Any) -> PyTree:
        x, r = parts
        return add(totals, _rows(use, eqn, x), None if r is None else _rows(use, eqn, r))

    axis, count = _parts(use, eqn, x)
    if count == 1:
        return once(totals, (x, r))
    examples = [p if p is None else jnp.moveaxis(p, axis, 0) for p in (x, r)]
    split = [p if p is None else p.reshape(count, -1, *p.shape[1:]) for p in examples]

    def step(totals: PyTree, parts: Any) -> tuple[PyTree, None]:
        return once(totals, [p if p is None else jnp.moveaxis(p, 0, axis) for p in parts]), None

    return jax.lax.scan(step, totals, split)[0]


def _rows(use: Use, eqn: Equation, x: Array) -> Array:
    """The rows, (*stacked, rows, inputs), of a use's other operand, which has the axes of scans first."""

    def rows(x: Array) -> Array:
        return input_rows(use, eqn, [x, x])

    for _ in range(x.ndim - len(eqn.in_avals[1 - use.operand].shape)):
        rows = jax.vmap(rows)
    return use.rows(rows(x).astype(jnp.float32))


def _parts(use: Use, eqn: Equation, x: Array) -> tuple[int, int]:
    """The axis of the examples in a convolution's input, and in how many parts they are gone through."""
    if eqn.primitive != "conv_general_dilated" or not x.size:
        return 0, 1
    numbers = eqn.params["dimension_numbers"]
    axis = x.ndim - len(eqn.in_avals[0].shape) + numbers.lhs_spec[0]
    positions = int(np.prod([eqn.out_avals[0].shape[place] for place in numbers.out_spec[2:]]))
    one = positions * use.layout.inputs * int(np.prod(use.layout.stacked, dtype=int))
    examples = x.shape[axis]
    sizes = [size for size in range(1, examples + 1) if examples % size == 0 and (size == 1 or size * one <= _IN_CACHE)]
    return axis, examples // sizes[-1]


__all__ = ["Add", "gathered"]
