"""Inference by a pipeline: several batches are under way at once, each in another stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.plan import Plan


@checked
def pipeline(
    plan: Plan, apply: Apply, variables: PyTree, devices: Sequence[jax.Device], *, ahead: int | None = None
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Put the stages on devices, for batches that go through them one behind another.

    While one stage has a batch, the stage before has the next. At most `ahead` batches are under way: then the oldest is
    waited for, so that nothing piles up before a slow stage.

    Args:
      plan: of the model.
      apply: the function.
      variables: its variables.
      devices: one for each stage, in order; more are not used.
      ahead: how many batches are under way at most; by default one more than there are stages.

    Returns:
      ``run(batches)``, which gives the outputs of each batch in order; a batch is the model's input, or a tuple of several.

    Raises:
      ValueError: for fewer devices than stages, or `ahead` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net, v = lambda v, x: jnp.sin(x * v["a"]) + v["b"], {"a": jnp.ones(2), "b": jnp.ones(2)}
      >>> run = pipeline(stages.plan(net, v, jnp.zeros(2), count=2), net, v, jax.devices()[:1] * 2)
      >>> [out.tolist() for out in run([jnp.zeros(2), jnp.zeros(2)])]
      [[1.0, 1.0], [1.0, 1.0]]
    """
    if len(devices) < len(plan):
        raise ValueError(f"pipeline: {len(plan)} stages need a device each; got {len(devices)} devices.")
    most = len(plan) + 1 if ahead is None else ahead
    if most < 1:
        raise ValueError(f"pipeline: ahead must be 1 or more batches; got {ahead}.")
    places = list(devices)[: len(plan)]
    units = [jax.jit(unit) for unit in plan.stages(apply)]
    parts = [jax.device_put(part, place) for part, place in zip(plan.split(variables), places)]

    def run(batches: Iterable[Any]) -> Iterator[Any]:
        under_way: deque[Any] = deque()
        for batch in batches:
            carried = batch if isinstance(batch, tuple) else (batch,)
            for unit, part, place in zip(units, parts, places):
                carried = unit(part, *jax.device_put(carried, place))
            under_way.append(carried)
            if len(under_way) >= most:
                yield jax.block_until_ready(under_way.popleft())
        yield from map(jax.block_until_ready, under_way)

    return run
