"""Going through a function from layer to layer, with what runs before a layer run once."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.flat import FlatGraph, Node
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.layout import Use
from lepton_jax.graph.origins import SOURCES
from lepton_jax.graph.primitives import OWN_DERIVATIVES
from lepton_jax.graph.programs import run_shared
from lepton_jax.graph.trace import Apply, Equation, Traced, trace
from lepton_jax.graph.weights import weight_uses

Values = dict[int, Any]
"""Arrays by their number in the flat graph."""


class Passage:
    """A function's graph, to be run from point to point; a point is a place in the list of its operations.

    Args:
      traced: the graph.
      layers: paths of the weights whose inputs are asked for.

    Attributes:
      uses: of the layers, by path.
      equations: their operations, by path.
      first: the place of the first use of each.

    Example:
      >>> import jax.numpy as jnp
      >>> v = {"a": 2 * jnp.eye(2), "b": jnp.eye(2)}
      >>> passage = Passage(trace(lambda v, x: x @ v["a"] @ v["b"], v, jnp.ones((1, 2))), ["b"])
      >>> end = passage.first["b"]
      >>> live = passage.advance(0, end, passage.given(passage.start(jnp.ones((1, 2))), v, 0, end))
      >>> [x.tolist() for x in live.values()]
      [[[2.0, 2.0]]]
    """

    def __init__(self, traced: Traced, layers: Collection[Path]) -> None:
        self.graph = FlatGraph(traced)
        self.uses = weight_uses(traced, layers)
        wanted = {use.operation for several in self.uses.values() for use in several}
        self.equations: dict[Any, Equation] = {eqn.path: eqn for eqn in traced.equations() if eqn.path in wanted}
        self._places = {path: [self._place(use) for use in several] for path, several in self.uses.items()}
        self.first = {path: min(places) for path, places in self._places.items()}
        self._numbers = {path: number for number, path in self.graph.leaf_of.items()}
        self._fed = set(self.graph.input_of)
        for node in self.graph.nodes:
            if node.eqn.primitive in SOURCES or self._fed.intersection(node.operands):
                self._fed |= set(node.results)
        self._plans: dict[Any, _Plan] = {}
        self._readers: dict[Path, int] = {}
        self._live: dict[int, tuple[int, ...]] = {}
        self._needed = {id(node) for node in self._plan(0, tuple(v for path in self.uses for v in self._asked(path))).nodes}

    def start(self, *inputs: Any) -> Values:
        """Return what is known at the beginning: the inputs."""
        leaves = jax.tree.leaves(tuple(inputs))
        return {number: leaves[place] for number, place in self.graph.input_of.items()}

    def reader(self, path: Path) -> int:
        """The place of the first operation that joins a leaf, or what is computed of variables with it, with an input."""
        if path not in self._readers:
            self._readers[path] = self._reader({self._numbers[path]})
        return self._readers[path]

    def given(self, live: Values, leaves: Mapping[Path, Array], begin: int, end: int) -> Values:
        """Return what `advance` needs: of the values at `begin`, and of the variables."""
        return self._given(live, leaves, self._plan(begin, self._live_at(end)))

    def advance(self, begin: int, end: int, given: Values) -> Values:
        """Return the values that operations from `end` on need, from those at `begin`; to be called under jit."""
        targets = self._live_at(end)
        env, _ = self._evaluate(self._plan(begin, targets).nodes, given)
        return {value: env[value] for value in targets}

    def given_to(self, path: Path, live: Values, leaves: Mapping[Path, Array]) -> Values:
        """Return what `inputs_of` needs: of the values at the layer's first use, and of the variables."""
        return self._given(live, leaves, self._plan(self.first[path], self._asked(path)))

    def inputs_of(self, path: Path, given: Values) -> list[Array]:
        """Return the other operand of each use of a layer, from scans with their axes first; to be called under jit."""
        _, emitted = self._evaluate(self._plan(self.first[path], self._asked(path)).nodes, given, self.uses[path])
        return [emitted[use.name] for use in self.uses[path]]

    def _place(self, use: Use) -> int:
        """Where a use, or the loop that it is in, stands."""
        path = use.operation
        while path not in self.graph.places:
            path = path[:-1]
        return self.graph.places[path]

    def _asked(self, path: Path) -> tuple[int, ...]:
        """One result of every operation that has a use of a layer in it."""
        return tuple(self.graph.nodes[place].results[0] for place in self._places[path])

    def _reader(self, tainted: set[int]) -> int:
        for place, node in enumerate(self.graph.nodes):
            if not tainted.isdisjoint(node.operands):
                if not self._fed.isdisjoint(node.results):
                    return place
                tainted |= set(node.results)
        return len(self.graph.nodes)

    def _plan(self, begin: int, targets: tuple[int, ...]) -> "_Plan":
        """How values are made from those at `begin`; what is of variables alone is computed where it is needed."""
        if (begin, targets) in self._plans:
            return self._plans[begin, targets]
        needed, found = set(targets), []
        for place in reversed(range(len(self.graph.nodes))):
            node = self.graph.nodes[place]
            fed = not self._fed.isdisjoint(node.results)
            if not needed.isdisjoint(node.results) and (place >= begin or not fed):
                found.append(node)
                needed |= set(node.operands)
        made = {value for node in found for value in node.results}
        self._plans[begin, targets] = _Plan(found[::-1], needed - made - {-1})
        return self._plans[begin, targets]

    def _live_at(self, end: int) -> tuple[int, ...]:
        """The values, computed from inputs, that operations from `end` on read."""
        if end not in self._live:
            made = {value for node in self.graph.nodes[:end] for value in node.results} | set(self.graph.input_of)
            read = {v for node in self.graph.nodes[end:] if id(node) in self._needed for v in node.operands}
            self._live[end] = tuple(sorted(read & made & self._fed))
        return self._live[end]

    def _given(self, live: Values, leaves: Mapping[Path, Array], plan: "_Plan") -> Values:
        found = {number: leaves[self.graph.leaf_of[number]] for number in plan.needed if number in self.graph.leaf_of}
        return found | {number: live[number] for number in plan.needed if number in live}

    def _evaluate(self, nodes: Sequence[Node], given: Values, uses: Sequence[Use] = ()) -> tuple[Values, dict[str, Any]]:
        interpreter = _Inputs(self.graph.traced, uses)
        env = {**self.graph.written, **given}
        for node in nodes:
            operands = [
                _compat.literal_value(atom) if number < 0 else env[number]
                for atom, number in zip(node.eqn.invars, node.operands)
            ]
            with _compat.context(node.eqn.raw):
                interpreter.handle(node.eqn, operands)
                env.update(zip(node.results, interpreter.default(node.eqn, operands)))
        return env, interpreter.emitted


class _Plan(NamedTuple):
    """Operations, and what they need that none of them makes."""

    nodes: list[Node]
    needed: set[int]


class Track:
    """A function that is gone through, with several batches, in the order of its layers.

    Args:
      apply: ``apply(variables, *inputs)``.
      variables: arrays, or their shapes.
      batches: the inputs, each a tuple.
      layers: paths of the weights whose inputs are asked for.

    Example:
      >>> import jax.numpy as jnp
      >>> v = {"a": 2 * jnp.eye(2), "b": jnp.eye(2)}
      >>> track = Track(lambda v, x: x @ v["a"] @ v["b"], v, [(jnp.ones((1, 2)),)], ["a", "b"])
      >>> for passage, given in track.at("b", v):
      ...     [x.tolist() for x in passage.inputs_of("b", given)]
      [[[2.0, 2.0]]]
    """

    def __init__(self, apply: Apply, variables: PyTree, batches: Sequence[tuple[Any, ...]], layers: Collection[Path]) -> None:
        self.batches = batches
        self.passages = [passage_of(apply, variables, inputs, tuple(layers)) for inputs in batches]
        self.points = [0] * len(batches)
        self.live = [passage.start(*inputs) for passage, inputs in zip(self.passages, batches)]

    def copy(self) -> "Track":
        """Return another one that stands where this does."""
        new = object.__new__(Track)
        new.batches, new.passages, new.points, new.live = self.batches, self.passages, [*self.points], [*self.live]
        return new

    def at(self, path: Path, variables: PyTree) -> Iterator[tuple[Passage, Values]]:
        """Go to the first use of a layer; yield for each batch its passage, and what `Passage.inputs_of` needs."""
        leaves = paths.flatten(variables)
        for number, passage in enumerate(self.passages):
            end = passage.first[path]
            if end < self.points[number]:
                self._restart(number)
            begin = self.points[number]
            if end > begin:
                given = passage.given(self.live[number], leaves, begin, end)
                self.points[number], self.live[number] = end, run_shared(Passage.advance, (passage, begin, end), given)
            yield passage, passage.given_to(path, self.live[number], leaves)

    def changed(self, path: Path) -> None:
        """A variable has changed: what was computed with it is forgotten."""
        for number, passage in enumerate(self.passages):
            if self.points[number] and passage.reader(path) < self.points[number]:
                self._restart(number)

    def _restart(self, number: int) -> None:
        self.points[number], self.live[number] = 0, self.passages[number].start(*self.batches[number])


def passage_of(apply: Apply, variables: PyTree, inputs: tuple[Any, ...], layers: tuple[Path, ...]) -> Passage:
    """Return the passage through a function at the shapes of some arguments; the last ones are kept, with their programs."""
    leaves, tree = jax.tree.flatten((variables, inputs))
    return _passage(apply, tree, tuple((np.shape(x), jax.dtypes.result_type(x)) for x in leaves), layers)


@lru_cache(maxsize=8)
def _passage(apply: Apply, tree: Any, avals: tuple[Any, ...], layers: tuple[Path, ...]) -> Passage:
    variables, inputs = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in avals])
    return Passage(trace(apply, variables, *inputs), layers)


class _Inputs(Interpreter):
    """Hands out what the given uses of leaves are fed. Nothing is differentiated, so derivative rules are left out."""

    def __init__(self, traced: Traced, uses: Sequence[Use]) -> None:
        super().__init__(traced)
        self.uses = {use.operation: use for use in uses}

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if use := self.uses.get(eqn.path):
            self.emit(use.name, values[1 - use.operand])
        return None

    def default(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        return self._call(eqn, values) if eqn.primitive in OWN_DERIVATIVES else super().default(eqn, values)


__all__ = ["Passage", "Track", "passage_of"]
