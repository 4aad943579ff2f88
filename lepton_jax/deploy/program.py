"""Programs of `.lepton` files as operations of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import INLINED
from lepton_jax.graph.trace import Equation, trace


class _Expanding(Interpreter):
    """Evaluates programs of files operation by operation, and calls by their bodies."""

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if eqn.primitive == "call_exported":
            from lepton_jax.artifact.stablehlo.evaluate import Program
            from lepton_jax.artifact.stablehlo.rules import RULES

            return Program(eqn.params["exported"], RULES)(*values)
        if eqn.primitive == "custom_vmap_call":
            call = eqn.params["call"]
            return self.evaluate(_compat.open_jaxpr(call), _compat.consts_of(call), values, (*eqn.path, "call"), eqn.scope)
        return self.inner(eqn, eqn.bodies[0], values) if eqn.primitive in INLINED and eqn.bodies else None


def expanded(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function in which programs of files are operations as others; any other function as it is.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from lepton_jax import load, save
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", lambda v, x: jnp.tanh(x @ v), jnp.eye(2), jnp.ones((1, 2)))
      ...     file = load(f"{folder}/m.lepton")
      >>> [eqn.primitive for eqn in trace(expanded(file.apply), file.variables, jnp.ones((1, 2))).equations()]
      ['dot_general', 'tanh']
    """

    @wraps(apply)
    def run(variables: Any, *inputs: Any) -> Any:
        traced = trace(apply, variables, *inputs)
        if not any(eqn.primitive in ("call_exported", "custom_vmap_call") for eqn in traced.equations()):
            return apply(variables, *inputs)
        return _Expanding(traced)(variables, *inputs)

    return run
