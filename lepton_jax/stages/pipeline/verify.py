"""Whether the gradients of a pipeline are those of the whole model: bit by bit, leaf by leaf."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.stages.pipeline.gradients import Run, make_stages
from lepton_jax.stages.pipeline.schedules import Schedule
from lepton_jax.stages.pipeline.step import microbatches
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.rows import merged
from lepton_jax.stages.unit import program_at
from lepton_jax.stages.verify import differ
from lepton_jax.training.step import LossFn

_SHOWN = 8


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafGradient:
    """How one leaf's gradient compares.

    Attributes:
      path: of the leaf.
      elements: how many it has.
      bits_differ: how many of them are not the same bits.
      largest: the largest difference, over the largest magnitude of all gradients.

    Example:
      >>> LeafGradient(path="kernel", elements=4, bits_differ=0, largest=0.0).bits_differ
      0
    """

    path: Path
    elements: int
    bits_differ: int
    largest: float


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifiedGradients:
    """How a pipeline's gradients compare with those of the whole model; it prints the leaves that differ, the worst first.

    Attributes:
      leaves: of all parameters that a stage has.
      loss_differs: whether the losses are not the same bits.

    Example:
      >>> same = LeafGradient(path="a", elements=4, bits_differ=0, largest=0.0)
      >>> print(VerifiedGradients(leaves=(same,), loss_differs=False))
      0 of 4 elements differ: the pipeline's gradients are those of the whole, bit for bit.
    """

    leaves: tuple[LeafGradient, ...]
    loss_differs: bool

    @property
    def elements(self) -> int:
        """Of all gradients."""
        return sum(leaf.elements for leaf in self.leaves)

    @property
    def bits_differ(self) -> int:
        """How many of them are not the same bits."""
        return sum(leaf.bits_differ for leaf in self.leaves)

    @property
    def largest(self) -> float:
        """The largest difference, over the largest magnitude of all gradients."""
        return max((leaf.largest for leaf in self.leaves), default=0.0)

    def __str__(self) -> str:
        losses = "; the losses differ, too" if self.loss_differs else ""
        if not self.bits_differ:
            same = "the pipeline's gradients are those of the whole, bit for bit"
            return f"0 of {self.elements} elements differ: {same}{losses}."
        wrong = sorted((leaf for leaf in self.leaves if leaf.bits_differ), key=lambda leaf: -leaf.largest)
        rows = [("leaf", "elements", "differ", "largest")]
        rows += [(leaf.path, f"{leaf.elements}", f"{leaf.bits_differ}", f"{leaf.largest:.1e}") for leaf in wrong[:_SHOWN]]
        more = [f"and {len(wrong) - _SHOWN} leaves more"] if len(wrong) > _SHOWN else []
        count = f"{self.bits_differ} of {self.elements} elements differ"
        said = (
            f"{count}, by {self.largest:.1e} of the largest at most{losses}. "
            "The compiler sums otherwise where it sees both sides of a cut; other cuts may be free of that."
        )
        return "\n".join([said, table(rows), *more])


@checked
def verify_gradients(
    plan: Plan,
    loss_fn: LossFn,
    params: PyTree,
    model_state: PyTree,
    batch: PyTree,
    key: Array,
    schedule: Schedule,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> VerifiedGradients:
    """Compare the gradients that a pipeline accumulates over microbatches with those that the whole model does.

    The whole is ``jax.value_and_grad(loss_fn)`` compiled as one program, its gradients summed over the microbatches in order.
    Both schedules give the same bits as one another; whether they give those of the whole depends on where the compiler joins
    operations over a cut.

    Args:
      plan: of `loss_fn`, as for `pipeline_step`.
      loss_fn: as for `pipeline_step`.
      params: as the model sees them.
      model_state: the model's other collections.
      batch: of which the microbatches are parts.
      key: microbatch m draws from ``fold_in(key, m)``.
      schedule: `GPipe` or `OneFOneB`, with the number of microbatches.
      devices: one a stage; None: the first one for all.

    Raises:
      ValueError: for fewer devices than stages, a batch that the microbatches do not divide, or a loss function that is not
        the plan's.

    Example:
      >>> from lepton_jax import stages
      >>> def loss_fn(params, model_state, batch, key):
      ...     return jnp.mean((jnp.tanh(batch @ params["a"]) @ params["b"]) ** 2), (model_state, {})
      >>> params, batch, key = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1))}, jnp.ones((8, 3)), jax.random.key(0)
      >>> plan = stages.plan(loss_fn, params, {}, batch[:2], key, count=2)
      >>> print(verify_gradients(plan, loss_fn, params, {}, batch, key, stages.GPipe(4)))
      0 of 16 elements differ: the pipeline's gradients are those of the whole, bit for bit.
    """
    places = [jax.devices()[0]] * len(plan) if devices is None else list(devices)
    if len(places) < len(plan):
        raise ValueError(f"verify_gradients: {len(plan)} stages need a device each; got {len(places)} devices.")
    places, count = places[: len(plan)], schedule.microbatches
    given = [(model_state, some, jax.random.fold_in(key, n)) for n, some in enumerate(microbatches(batch, count))]
    shapes = jax.eval_shape(lambda: (params, given[0]))
    made = make_stages(plan, program_at(plan, loss_fn, shapes[0], shapes[1]))
    run = Run(made, [jax.device_put(dict(part), place) for part, place in zip(plan.split(params), places)], places)
    run(schedule, [jax.tree.leaves(one) for one in given])
    sums = merged(plan.stages_of, jax.device_put(run.sums, places[0]), True)
    grad, total, losses = jax.jit(jax.value_and_grad(loss_fn, has_aux=True)), None, []
    for one in given:
        (loss, _), found = grad(params, *one)
        losses.append(loss)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    whole = paths.flatten(total)
    scale = max(max(float(np.abs(leaf).max(initial=0)) for leaf in whole.values()), float(np.finfo(np.float32).tiny))
    leaves = tuple(
        LeafGradient(
            path=path,
            elements=int(np.size(leaf)),
            bits_differ=differ(whole[path], leaf),
            largest=float(np.abs(np.asarray(whole[path], np.float64) - np.asarray(leaf, np.float64)).max(initial=0)) / scale,
        )
        for path, leaf in sums.items()
    )
    return VerifiedGradients(leaves=leaves, loss_differs=any(differ(a, b[0]) for a, b in zip(losses, run.outputs)))
