"""A graph without calls: every operation in one list, every value a number."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jax.core.typing import Path
from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.primitives import INLINED
from lepton_jax.graph.trace import CallPath, Equation, Traced


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


class FlatGraph(Forward[int]):
    """A graph with its plain calls inlined, every value a number.

    Args:
      traced: the graph.

    Attributes:
      nodes: the operations in program order.
      places: where in `nodes` the operation of a path is.
      touching: where in `nodes` a value is made or used.
      leaf_of: the path of a value that is a variable.
      ends: values that cannot be scaled, and what they are.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = FlatGraph(trace(lambda v, x: jax.nn.relu(x @ v), jnp.ones((2, 2)), jnp.ones((1, 2))))
      >>> [node.eqn.primitive for node in graph.nodes], graph.ends[graph.nodes[0].operands[0]]
      (['dot_general', 'max'], 'the input 0 of the model')
    """

    def __init__(self, traced: Traced):
        super().__init__()
        self.traced = traced
        self.nodes: list[Node] = []
        self.places: dict[CallPath, int] = {}
        self.touching: dict[int, list[int]] = {}
        self._origins = origins(traced)
        self._numbers = itertools.count()
        self.leaf_of: dict[int, Path] = {next(self._numbers): path for path in traced.variables}
        self.ends = {next(self._numbers): f"the input {name} of the model" for name in traced.inputs}
        outputs = self.body(traced.jaxpr, traced.consts, [*self.leaf_of, *self.ends])
        self.ends.update(dict.fromkeys(outputs, "an output of the model"))

    def constant(self, value: Any) -> int:
        number = next(self._numbers)
        self.ends[number] = "a constant"
        return number

    def call(self, eqn: Equation, given: list[int]) -> Sequence[int]:
        return super().call(eqn, given) if eqn.primitive in INLINED else self.operation(eqn, given)

    def operation(self, eqn: Equation, given: list[int]) -> Sequence[int]:
        operands = tuple(-1 if _compat.is_literal(atom) else number for atom, number in zip(eqn.invars, given))
        results = tuple(next(self._numbers) for _ in eqn.outvars)
        fixed = tuple(origin is not None for origin in operand_origins(self._origins, eqn))
        self.places[eqn.path] = place = len(self.nodes)
        self.nodes.append(Node(eqn=eqn, operands=operands, results=results, fixed=fixed))
        for value in {*operands, *results} - {-1}:
            self.touching.setdefault(value, []).append(place)
        return results
