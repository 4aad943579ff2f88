"""Evaluation of a graph whose values at sites are rounded, whatever rounding is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lepton_jax.deploy.sites import Graph, Grid, Site, variables_of
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.trace import Equation, Traced


class AtSites(Interpreter):
    """Base: says which values are rounded; what that is, `round` and `done` say.

    Args:
      traced: the graph, in one piece.
      sites: which values are rounded.
      grids: how.
      largest: of weights' codes.
    """

    def __init__(self, traced: Traced, sites: Mapping[str, Site], grids: Mapping[str, Grid], largest: int):
        super().__init__(traced)
        self.graph = Graph(traced)
        self.at = variables_of(self.graph, sites)
        self.grids, self.largest = grids, largest

    def round(self, var: Any, value: Any) -> Any:
        """A value, rounded if it is at a site."""
        raise TypeError(f"{type(self).__name__} must define round")

    def done(self, eqn: Equation, values: list[Any]) -> list[Any] | None:
        """The results of an operation that is done in another way; None: of any other."""
        raise TypeError(f"{type(self).__name__} must define done")

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
        outs: Sequence[Any] | None = self.done(eqn, list(values))
        outs = self.default(eqn, values) if outs is None else outs
        return [self.round(var, out) for var, out in zip(eqn.outvars, outs)]
