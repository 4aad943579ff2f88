"""What the stages of a plan take on this machine."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.plan import Plan

_LEAST = 0.002
"""A shorter call is repeated until it has taken so many seconds."""


@checked
def stage_seconds(plan: Plan, apply: Apply, variables: PyTree, *inputs: Any, rounds: int = 5) -> tuple[float, ...]:
    """Time the stages of a model, each compiled by itself.

    The stages take turns; of each the least time of all rounds counts, which other work on the machine disturbs least.

    Args:
      plan: of the model.
      apply: the function.
      variables: its variables; of shapes, random numbers are drawn.
      *inputs: its inputs, or their shapes.
      rounds: how many.

    Returns:
      seconds of each stage.

    Example:
      >>> from lepton_jax import stages
      >>> net, v, x = (
      ...     lambda v, x: jnp.sin(x @ v["a"]) @ v["b"],
      ...     {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))},
      ...     jnp.ones((2, 4)),
      ... )
      >>> found = stages.stage_seconds(stages.plan(net, v, x, count=2), net, v, x)
      >>> len(found), min(found) > 0
      (2, True)
    """
    check_whole("stage_seconds: rounds", rounds, 1)
    variables, inputs = filled((variables, inputs))
    calls, carried = [], inputs
    for unit, part in zip(plan.stages(apply), plan.split(variables)):
        run = jax.jit(unit)
        given, carried = carried, jax.block_until_ready(run(part, *carried))
        calls.append((run, part, given))
    least = [float("inf")] * len(calls)
    for _ in range(rounds):
        for number, (run, part, given) in enumerate(calls):
            least[number] = min(least[number], _once(run, part, given))
    return tuple(least)


def filled(tree: PyTree) -> PyTree:
    """Return the tree with arrays of random numbers for shapes; integers are 0, which is an index of any table.

    Example:
      >>> filled([jax.ShapeDtypeStruct((2,), jnp.int32), 1.0])
      [Array([0, 0], dtype=int32), 1.0]
    """
    rng = np.random.default_rng(0)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(fill, tree)


def _once(run: Any, part: Any, given: tuple[Any, ...]) -> float:
    begin, count = time.perf_counter(), 0
    while True:
        jax.block_until_ready(run(part, *given))
        count += 1
        taken = time.perf_counter() - begin
        if taken >= _LEAST:
            return taken / count
