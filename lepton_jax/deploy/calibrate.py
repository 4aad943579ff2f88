"""The ranges of values in eight bits, found on batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax.core.errors import collect
from lepton_jax.core.typing import PyTree
from lepton_jax.deploy.sites import Graph, Grid, Site, find, variables_of
from lepton_jax.formats import Uniform
from lepton_jax.formats.ranges import Calibration
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.trace import Apply, Equation, Traced, trace

CODES = Uniform(8, symmetric=False)
"""What values are rounded to: 0 to 255, with a zero point."""
_LARGEST = 1e30
"""An infinity stretches a range to the largest float32."""


class _Observer(Interpreter):
    def __init__(self, traced: Traced, states: Mapping[str, Any], calibration: Calibration):
        super().__init__(traced)
        self.states, self.calibration = dict(states), calibration
        self.at = variables_of(Graph(traced), find(traced))

    def note(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        for var, value in zip(variables, values):
            site = self.at.get(var)
            if site is not None and site.of == site.name:
                axes = tuple(range(value.ndim))
                self.states[site.name] = self.calibration.observe(self.states[site.name], value, axes)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any]:
        outs = self.default(eqn, values)
        if len(eqn.path) == 1:
            self.note(eqn.outvars, outs)
        return outs


def calibrated(
    apply: Apply, variables: PyTree, batches: Iterable[tuple[Any, ...]], calibration: Calibration
) -> tuple[dict[str, Site], dict[str, Grid]]:
    """Return the sites of a function in one piece, and how each value that has a scale of its own is rounded.

    Raises:
      ValueError: without batches; for batches that are not like the first; for values that are not finite.
    """
    states: dict[str, Any] = {}
    sites: dict[str, Site] = {}

    @jax.jit
    def step(states: Any, variables: PyTree, inputs: tuple[Any, ...]) -> Any:
        traced = trace(apply, variables, *inputs)
        observer = _Observer(traced, states, calibration)
        values = traced.flatten(variables, inputs, {})
        observer.note(traced.jaxpr.invars, values)
        observer.run(values)
        return observer.states

    first: list[Any] = []
    for number, inputs in enumerate(batches):
        shapes = [(np.shape(leaf)[1:], np.asarray(leaf).dtype) for leaf in jax.tree.leaves(inputs)]
        if not first:
            first = shapes
            traced = trace(apply, variables, *inputs)
            sites = find(traced)
            at = variables_of(Graph(traced), sites)
            states = {s.name: calibration.init((1,) * len(v.aval.shape)) for v, s in at.items() if s.of == s.name}
        elif shapes != first:
            raise ValueError(f"place: batch {number} must be like the first, {first} behind the batch axis; got {shapes}.")
        states = step(states, variables, inputs)
    if not first:
        raise ValueError("place: needs at least one batch, an array or a tuple of inputs; got none.")
    return sites, _grids(states, calibration)


def _grids(states: Mapping[str, Any], calibration: Calibration) -> dict[str, Grid]:
    found = {}
    with collect("place: ranges must be finite") as problems:
        for name, state in states.items():
            low, high = calibration.range(state, CODES)
            step, zero_point = CODES.scale_and_zero_point(low, high)
            scale = np.float32(np.asarray(step).reshape(()))
            if not 0 < scale < _LARGEST:
                problems.append(f"{name}: from {np.asarray(low).item():.4g} to {np.asarray(high).item():.4g}")
            found[name] = Grid(scale, int(np.asarray(zero_point).reshape(())))
    return found
