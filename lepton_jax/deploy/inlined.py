"""A graph in one piece: calls and short loops taken apart, so that every value stands in one list of operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.typing import PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import INLINED, PRODUCTS
from lepton_jax.graph.trace import Apply, Equation, trace, walk

_LONGEST = 64
"""Steps of a loop over layers that is taken apart."""


class Inlining(Interpreter):
    """Evaluates calls by their bodies, and loops over layers step by step; derivative rules are left behind."""

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if eqn.primitive in INLINED and eqn.bodies:
            return self.inner(eqn, eqn.bodies[0], values)
        if eqn.primitive == "scan" and eqn.params["length"] <= _LONGEST and _has_products(eqn.bodies[0].jaxpr):
            return self._steps(eqn, values)
        return None

    def _steps(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        consts, carries = _compat.scan_counts(eqn.raw)
        given, carry, scanned = values[:consts], values[consts : consts + carries], values[consts + carries :]
        order = range(eqn.params["length"])
        made: list[Any] = []
        for step in reversed(order) if eqn.params["reverse"] else order:
            outs = self.inner(eqn, eqn.bodies[0], [*given, *carry, *(value[step] for value in scanned)])
            carry, made = outs[:carries], [*made, outs[carries:]]
        made = made[::-1] if eqn.params["reverse"] else made
        return [*carry, *(jnp.stack(column) for column in zip(*made))]


def _has_products(jaxpr: Any) -> bool:
    return any(eqn.primitive in PRODUCTS for eqn in walk(jaxpr))


def inlined(apply: Apply) -> Apply:
    """Return a function that is traced to one list of operations; it has the derivatives of what is written out.

    Example:
      >>> import jax
      >>> [eqn.primitive for eqn in trace(inlined(lambda v, x: jax.nn.relu(x)), {}, jnp.ones(2)).equations()]
      ['max']
    """

    @wraps(apply)
    def run(variables: PyTree, *inputs: Any) -> PyTree:
        return Inlining(trace(apply, variables, *inputs))(variables, *inputs)

    return run
