"""A graph without calls: every operation in one list, every value a number."""

from dataclasses import dataclass, field
from typing import Any

from lepton_jax.core.typing import Path
from lepton_jax.graph import _compat
from lepton_jax.graph.flow import operand_origins, origins
from lepton_jax.graph.trace import CallPath, Equation, Traced, join

_INLINED = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """An operation, with numbers in place of its values; -1 for a literal.

    Args:
      eqn: the operation.
      operands: its operands.
      results: its results.
      fixed: which operands depend on variables alone.
    """

    eqn: Equation
    operands: tuple[int, ...]
    results: tuple[int, ...]
    fixed: tuple[bool, ...]


@dataclass(eq=False)
class FlatGraph:
    """A graph with its plain calls inlined, every value a number.

    Args:
      traced: the graph.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = FlatGraph(trace(lambda v, x: jax.nn.relu(x @ v), jnp.ones((2, 2)), jnp.ones((1, 2))))
      >>> [node.eqn.primitive for node in graph.nodes], graph.ends[graph.nodes[0].operands[0]]
      (['dot_general', 'max'], 'the input 0 of the model')
    """

    traced: Traced
    nodes: list[Node] = field(default_factory=list)
    """The operations in program order."""
    places: dict[CallPath, int] = field(default_factory=dict)
    """Where in `nodes` the operation of a path is."""
    touching: dict[int, list[int]] = field(default_factory=dict)
    """Where in `nodes` a value is made or used."""
    leaf_of: dict[int, Path] = field(default_factory=dict)
    """The path of a value that is a variable."""
    ends: dict[int, str] = field(default_factory=dict)
    """Values that cannot be scaled, and what they are."""

    def __post_init__(self) -> None:
        self._origins = origins(self.traced)
        self._count = 0
        jaxpr = self.traced.jaxpr
        env: dict[Any, int] = {}
        names = [*self.traced.variables, *(f"the input {name} of the model" for name in self.traced.inputs)]
        for index, var in enumerate(jaxpr.invars):
            env[var] = self._new()
            if index < len(self.traced.variables):
                self.leaf_of[env[var]] = names[index]
            else:
                self.ends[env[var]] = names[index]
        self._walk(jaxpr, env, (), "")
        self.ends.update({env[var]: "an output of the model" for var in jaxpr.outvars if not _compat.is_literal(var)})

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _walk(self, jaxpr: Any, env: dict[Any, int], path: CallPath, scope: str) -> None:
        for var in jaxpr.constvars:
            if var not in env:
                env[var] = self._new()
                self.ends[env[var]] = "a constant"
        for index, raw in enumerate(jaxpr.eqns):
            eqn = Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)))
            given = tuple(-1 if _compat.is_literal(v) else env[v] for v in eqn.invars)
            if eqn.primitive in _INLINED and eqn.bodies:
                [body] = eqn.bodies
                inner: dict[Any, int] = {}
                for var, operand in zip(body.jaxpr.invars, body.operands):
                    inner[var] = given[operand] if given[operand] >= 0 else self._literal()
                self._walk(body.jaxpr, inner, (*eqn.path, body.label), eqn.scope)
                for var, result in zip(body.jaxpr.outvars, body.results):
                    env[eqn.outvars[result]] = self._literal() if _compat.is_literal(var) else inner[var]
                continue
            for var in eqn.outvars:
                env[var] = self._new()
            fixed = tuple(origin is not None for origin in operand_origins(self._origins, eqn))
            self._add(Node(eqn=eqn, operands=given, results=tuple(env[v] for v in eqn.outvars), fixed=fixed))

    def _literal(self) -> int:
        value = self._new()
        self.ends[value] = "a constant"
        return value

    def _add(self, node: Node) -> None:
        place = len(self.nodes)
        self.nodes.append(node)
        self.places[node.eqn.path] = place
        for value in {*node.operands, *node.results} - {-1}:
            self.touching.setdefault(value, []).append(place)
