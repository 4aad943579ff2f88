"""A graph without calls: every operation in one list, every value a number."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
      within: of a scan's body, the graph around it and the scan.

    Attributes:
      nodes: the operations in program order.
      places: where in `nodes` the operation of a path is.
      touching: where in `nodes` a value is made or used.
      leaf_of: the path of a value that is a variable, or, in a scan, its layer.
      scans: the graphs of the scans' bodies.
      steps: how often the scans around run, from outside in.
      order: the numbers of the layers, by the order in which they run.
      input_of: the place among the inputs of a value that is one.
      written: the values that are written into the program.
      ends: values that cannot be scaled, and what they are.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = FlatGraph(trace(lambda v, x: jax.nn.relu(x @ v), jnp.ones((2, 2)), jnp.ones((1, 2))))
      >>> [node.eqn.primitive for node in graph.nodes], graph.ends[graph.nodes[0].operands[0]]
      (['dot_general', 'max'], 'the input 0 of the model')
    """

    def __init__(self, traced: Traced, within: "tuple[FlatGraph, Node] | None" = None):
        super().__init__()
        self.traced = traced
        self.nodes: list[Node] = []
        self.places: dict[CallPath, int] = {}
        self.touching: dict[int, list[int]] = {}
        self.leaf_of: dict[int, Path] = {}
        self.input_of: dict[int, int] = {}
        self.written: dict[int, Any] = {}
        self.ends: dict[int, str] = {}
        self.steps: tuple[int, ...] = ()
        self.order = np.zeros((), int)
        self._numbers = itertools.count()
        if within is None:
            self._origins = origins(traced)
            self.leaf_of = {next(self._numbers): path for path in traced.variables}
            self.input_of = {next(self._numbers): place for place in range(len(traced.inputs))}
            self.ends = {number: f"the input {traced.inputs[place]} of the model" for number, place in self.input_of.items()}
            outputs: Sequence[int] = self.body(traced.jaxpr, traced.consts, [*self.leaf_of, *self.input_of])
            self.ends.update(dict.fromkeys(outputs, "an output of the model"))
        else:
            self._origins = within[0]._origins
            outputs = self._step_of(*within)
            self.ends.update(dict.fromkeys(outputs, "what a step of a scan hands on"))
        self.scans = [FlatGraph(traced, (self, node)) for node in self.nodes if node.eqn.primitive == "scan"]

    def all(self) -> Iterator["FlatGraph"]:
        """This graph, and those of the scans in it."""
        yield self
        for graph in self.scans:
            yield from graph.all()

    def whole(self, index: np.ndarray, count: int) -> np.ndarray:
        """Number something of a leaf in all its layers, from the numbers, below `count`, that it has in one of them.

        Example:
          >>> import jax
          >>> import jax.numpy as jnp
          >>> from lepton_jax.graph.trace import trace
          >>> apply = lambda v, x: jax.lax.scan(lambda x, w: (x @ w, None), x, v)[0]
          >>> [_, graph] = FlatGraph(trace(apply, jnp.ones((3, 2, 2)), jnp.ones((1, 2)))).all()
          >>> graph.whole(np.array([[0, 1]]), 2).tolist()
          [[[0, 1]], [[2, 3]], [[4, 5]]]
        """
        layers = np.arange(math.prod(self.steps)).reshape(*self.steps, *(1,) * index.ndim)
        return layers * count + index

    def _step_of(self, outer: "FlatGraph", node: Node) -> Sequence[int]:
        """Go through one step of a scan: what it takes apart are layers of leaves, if nothing else reads these."""
        [body] = node.eqn.bodies
        self.steps = (*outer.steps, node.eqn.params["length"])
        run = np.arange(self.steps[-1])[:: -1 if node.eqn.params["reverse"] else 1]
        self.order = outer.order[..., None] * self.steps[-1] + run
        given = []
        for position, operand in enumerate(body.operands):
            number, value = next(self._numbers), node.operands[operand]
            given.append(number)
            once = outer.touching.get(value) == [outer.places[node.eqn.path]] and node.operands.count(value) == 1
            if position in body.scanned_in and value in outer.leaf_of and value not in outer.ends and once:
                self.leaf_of[number] = outer.leaf_of[value]
            elif position in body.scanned_in:
                self.ends[number] = "something that a scan takes apart"
            else:
                carried = any(into == position for _, into in body.carry)
                self.ends[number] = "what a scan carries on" if carried else "something that all steps of a scan share"
        return self.inside(node.eqn, body, given)

    def constant(self, value: Any) -> int:
        number = next(self._numbers)
        self.written[number] = value
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
