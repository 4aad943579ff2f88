"""A graph with the values that an engine has in eight bits marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact.inputs import Axes, named
from lepton_jax.deploy.models import shapes_of
from lepton_jax.deploy.sites import Graph, Grid, Site, is_absorbed, is_rectifier, variables_of
from lepton_jax.deploy.to_litert.points import Point, Points
from lepton_jax.deploy.to_litert.write import bytes_of
from lepton_jax.deploy.weights import in_codes, outputs_of
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.trace import Equation, Traced, trace


def file_of(placed: Any, axes: Axes | None, constraints: Sequence[str]) -> bytes:
    """Write a placed model.

    Args:
      placed: of `lepton_jax.deploy.place`.
      axes: which axes may have any length; None: none.
      constraints: on the lengths.

    Raises:
      As `write.bytes_of`.
    """
    points, model = Points(), placed.model
    shapes = named(shapes_of(model.example), axes or {}, constraints)[0]
    values = [np.asarray(leaf) for leaf in jax.tree.leaves(model.variables)]

    def function(*inputs: Any) -> Any:
        traced = trace(model.apply, model.variables, *shapes)
        rounded = Rounded(traced, placed.sites, placed.grids, placed.largest, points)
        return jax.tree.unflatten(traced.out_tree, rounded.run([*values, *jax.tree.leaves(inputs)]))

    return bytes_of(function, shapes, points, name="deploy.place")


class Rounded(Interpreter):
    """Evaluates a graph, every value at a site rounded to signed codes, and the weights that meet them.

    Args:
      traced: the graph, in one piece.
      sites: which values are rounded.
      grids: how, with unsigned codes; the signed ones are less by 128.
      largest: of weights' codes.
      points: where places are marked.
    """

    def __init__(self, traced: Traced, sites: Mapping[str, Site], grids: Mapping[str, Grid], largest: int, points: Points):
        super().__init__(traced)
        self.graph = Graph(traced)
        self.at = variables_of(self.graph, sites)
        self.grids, self.largest, self.points = grids, largest, points

    def evaluate(self, jaxpr: Any, consts: Any, values: Sequence[Any], path: Any = (), scope: str = "") -> list[Any]:
        if path == ():
            values = [self.round(var, value) for var, value in zip(jaxpr.invars, values)]
        return super().evaluate(jaxpr, consts, values, path, scope)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if len(eqn.path) != 1:
            return None
        if all(map(self.graph.is_constant, eqn.outvars)):
            with jax.ensure_compile_time_eval():  # weights are looked at
                return self.default(eqn, values)
        outs: Sequence[Any]
        if self.graph.is_weighted(eqn) and eqn.invars[0] in self.at:
            outs = [self._product(eqn, *values)]
        elif (only := self._absorbed(eqn, values)) is not None:
            outs = [only]
        else:
            outs = self.default(eqn, values)
        return [self.round(var, out) for var, out in zip(eqn.outvars, outs)]

    def round(self, var: Any, value: Any) -> Any:
        """A value, rounded if it is at a site."""
        site = self.at.get(var)
        if site is None:
            return value
        grid = self.grids[site.of]
        return self.points.mark(value, Point(np.asarray(grid.scale), grid.zero_point - 128))

    def _absorbed(self, eqn: Equation, values: Sequence[Any]) -> Any:
        """The operand of a rectifier whose bounds are those of the codes that follow."""
        if not is_rectifier(eqn) or (site := self.graph.site_after(eqn, self.at)) is None:
            return None
        if not is_absorbed(eqn, self.grids[site.of]):
            return None
        [value] = [value for value, var in zip(values, eqn.invars) if not self.graph.is_constant(var)]
        return value

    def _product(self, eqn: Equation, x: Any, weight: Any) -> Any:
        found = in_codes(eqn, np.asarray(weight), self.largest)
        outputs, low = outputs_of(eqn), int(min(found.codes.min(initial=0), -127))
        dense, scale = (
            found.rounded(),
            np.broadcast_to(found.scale, [length if axis in outputs else 1 for axis, length in enumerate(found.shape)]).reshape(
                -1
            ),
        )
        if len(outputs) == 1:
            return self.bind(eqn, [x, self.points.mark(jnp.asarray(dense), Point(scale, 0, outputs[0], low))])[0]
        # A matrix of all outputs: types have scales along one axis only.
        (left, right), _ = eqn.params["dimension_numbers"]
        rows = [axis for axis in range(np.ndim(x)) if axis not in left]
        inner = int(np.prod([found.shape[axis] for axis in right]))
        matrix = dense.transpose(*right, *outputs).reshape(inner, -1)
        flat = jnp.reshape(jnp.transpose(x, (*rows, *left)), (*(x.shape[axis] for axis in rows), inner))
        made = flat @ self.points.mark(jnp.asarray(matrix), Point(scale, 0, 1, low))
        return jnp.reshape(made, eqn.out_avals[0].shape)
