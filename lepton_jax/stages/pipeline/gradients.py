"""Gradients of a batch by a pipeline of stages on devices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array, Path
from lepton_jax.graph.cost import nbytes
from lepton_jax.stages.pipeline.backward import Leaves, Stage
from lepton_jax.stages.pipeline.schedules import Schedule, in_turn
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.program import Program


def make_stages(plan: Plan, program: Program) -> list[Stage]:
    """Return the stages of a program, each with the variables that it shares with others."""
    whole = [set(facts.leaves) - {path for path, _, _ in facts.rows} for facts in plan.stages_of]
    made = []
    for number, (begin, end) in enumerate(itertools.pairwise([0, *plan.cuts, len(program.operations)])):
        later = set().union(*whole[number + 1 :]) & whole[number]
        earlier = set().union(*whole[:number]) & whole[number]
        made.append(Stage(program, begin, end, sorted(later), sorted(earlier)))
    return made


class Run:
    """One batch on its way through a pipeline.

    Args:
      stages: what is done.
      parts: the variables, each on its stage's device.
      devices: one a stage.

    Attributes:
      sums: of each stage's gradients over the microbatches.
      outputs: what the loss function returned for each microbatch, flat.
      kept, most_kept: bytes of stage inputs that are kept, now and at most.
    """

    def __init__(self, stages: Sequence[Stage], parts: Sequence[Mapping[Path, Array]], devices: Sequence[Any]):
        self.stages, self.parts, self.devices = stages, parts, devices
        self.sums: list[Leaves] = [{} for _ in stages]
        self.outputs: list[list[Any]] = []
        self.kept = self.most_kept = 0
        self._taken: dict[tuple[int, int], list[Any]] = {}
        self._cotangents: dict[tuple[int, int], list[Array]] = {}
        self._tied: dict[int, Leaves] = {}

    def __call__(self, schedule: Schedule, inputs: Sequence[Sequence[Any]]) -> None:
        """Take the flat inputs of every microbatch forwards and backwards."""
        for what, stage, number in in_turn(schedule, len(self.stages)):
            if what == "forward":
                self._forward(stage, number, inputs)
            else:
                self._backward(stage, number)

    def _forward(self, stage: int, number: int, inputs: Sequence[Sequence[Any]]) -> None:
        if stage == 0:
            self._taken[0, number] = jax.device_put(list(inputs[number]), self.devices[0])
        carried = self._taken[stage, number]
        self.kept += sum(map(nbytes, carried))
        self.most_kept = max(self.most_kept, self.kept)
        if not self.stages[stage].is_last:
            outs = self.stages[stage].forward(self.parts[stage], carried)
            self._taken[stage + 1, number] = jax.device_put(outs, self.devices[stage + 1])

    def _backward(self, stage: int, number: int) -> None:
        one, carried = self.stages[stage], self._taken.pop((stage, number))
        self.kept -= sum(map(nbytes, carried))
        waiting = self._tied.setdefault(number, {})
        tied = jax.device_put({path: waiting.pop(path) for path in one.later if path in waiting}, self.devices[stage])
        cotangents = [] if one.is_last else self._cotangents.pop((stage, number))
        grads, back, outs = one.backward(self.parts[stage], carried, cotangents, tied)
        if one.is_last:
            self.outputs.append(outs)
        if stage:
            self._cotangents[stage - 1, number] = jax.device_put(back, self.devices[stage - 1])
        waiting.update({path: grads.pop(path) for path in one.earlier if path in grads})
        self.sums[stage] = _added(self.sums[stage], grads) if self.sums[stage] else grads


@jax.jit
def _added(total: Leaves, one: Leaves) -> Leaves:
    return jax.tree.map(jnp.add, total, one)
