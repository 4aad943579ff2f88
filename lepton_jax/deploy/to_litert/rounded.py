"""A graph with the values that an engine has in eight bits marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact.inputs import Axes, named
from lepton_jax.deploy.at_sites import AtSites
from lepton_jax.deploy.models import shapes_of
from lepton_jax.deploy.sites import Grid, Site, is_absorbed, is_rectifier
from lepton_jax.deploy.to_litert.points import Point, Points
from lepton_jax.deploy.to_litert.write import bytes_of
from lepton_jax.deploy.weights import in_codes, outputs_of
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


class Rounded(AtSites):
    """Evaluates a graph, every value at a site rounded to signed codes, and the weights that meet them.

    Args:
      traced: the graph, in one piece.
      sites: which values are rounded.
      grids: how, with unsigned codes; the signed ones are less by 128.
      largest: of weights' codes.
      points: where places are marked.
    """

    def __init__(self, traced: Traced, sites: Mapping[str, Site], grids: Mapping[str, Grid], largest: int, points: Points):
        super().__init__(traced, sites, grids, largest)
        self.points = points

    def done(self, eqn: Equation, values: list[Any]) -> list[Any] | None:
        if self.graph.is_weighted(eqn) and eqn.invars[0] in self.at:
            return [self._product(eqn, *values)]
        only = self._absorbed(eqn, values)
        return None if only is None else [only]

    def round(self, var: Any, value: Any) -> Any:
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
        along = [length if axis in outputs else 1 for axis, length in enumerate(found.shape)]
        dense, scale = found.rounded(), np.broadcast_to(found.scale, along).reshape(-1)
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
