"""Scalings of channels that leave a function as it is: what is multiplied on one side is divided out on the other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.flat import FlatGraph, Node
from lepton_jax.graph.scaling_rules import Channels, alternatives
from lepton_jax.graph.trace import Equation, Traced
from lepton_jax.graph.weights import weight_uses


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """A family of changes of the variables, by one positive factor a channel, under which the function stays what it is.

    Args:
      channels: how many; of a scan, those of all layers, one layer after the other.
      leaves: by path, the channel of every entry (integers that broadcast to the leaf), and whether it is multiplied by its
        channel's factor (1: what makes the channels) or divided (-1: what they are fed to).
      layers: of a scan that has the channels, how many layers it takes apart; 1: no scan.

    Example:
      >>> scaling = Scaling(channels=2, leaves={"a": (np.array([[0, 1]]), 1), "b": (np.array([[0], [1]]), -1)})
      >>> new = scaling.apply({"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))}, jnp.array([2.0, 4.0]))
      >>> new["a"].tolist(), new["b"].tolist()
      ([[2.0, 4.0]], [[0.5], [0.25]])
    """

    channels: int
    leaves: Mapping[Path, tuple[np.ndarray, int]]
    layers: int = 1

    def apply(self, variables: PyTree, factors: Array) -> PyTree:
        """Return the variables with the channels multiplied by `factors`, (channels,), positive."""
        held = paths.flatten(variables)
        new = {}
        for path, (index, sign) in self.leaves.items():
            wide = held[path].astype(jnp.float32)
            each = jnp.broadcast_to(factors.astype(jnp.float32)[index], wide.shape)
            new[path] = (wide * each if sign > 0 else wide / each).astype(held[path].dtype)
        return paths.replace(variables, new)

    def side(self, sign: int) -> list[Path]:
        """The leaves that are multiplied (1), or divided (-1)."""
        return [path for path, (_, own) in self.leaves.items() if own == sign]


def input_scalings(traced: Traced, consumers: Sequence[Path]) -> tuple[list[Scaling], dict[Path, str]]:
    """Find how the input channels of layers can be scaled by what makes them: a norm, a layer, a bias before.

    From a layer's input the graph is followed backwards through what multiplying by positive factors goes through unchanged
    (sums whose every part can be scaled, relu, reshapes, pooling, the values of attention) to variables, and forwards to all
    else that uses the same values, which must divide by the factors in turn. In a scan that takes layers apart this is done in
    a step, and each layer has factors of its own.

    Args:
      traced: the graph.
      consumers: paths of the layers' weights, each of a dot or a convolution.

    Returns:
      (scalings, left): the scalings, in the order in which their layers run, each with all layers that share the input; and
      for each layer that has none, why.

    Raises:
      ValueError: for leaves that are no layer's weight, as `weight_uses`.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> def apply(v, x):
      ...     return jnp.maximum(x @ v["one"] + v["bias"][None], 0) @ v["two"]
      >>> v = {"bias": jnp.ones(3), "one": jnp.ones((2, 3)), "two": jnp.ones((3, 2))}
      >>> [scaling], left = input_scalings(trace(apply, v, jnp.ones((1, 2))), ["one", "two"])
      >>> scaling.side(1), scaling.side(-1), left
      (['one', 'bias'], ['two'], {'one': 'its input comes from the input 0 of the model'})
    """
    graphs = list(FlatGraph(traced).all())
    found: list[Scaling] = []
    left: dict[Path, str] = {}
    for path, uses in weight_uses(traced, consumers).items():
        if any(path in scaling.leaves and scaling.leaves[path][1] < 0 for scaling in found):
            continue
        graph = next((graph for graph in graphs if uses[0].operation in graph.places), None)
        if graph is None:
            left[path] = "it is used within a loop or a branch"
            continue
        place = graph.places[uses[0].operation]
        node = graph.nodes[place]
        side = 1 - uses[0].operand
        channels, count = _start(node.eqn, side)
        state, reason = _solve(graph, {node.operands[side]: channels}, [place])
        if state is None:
            left[path] = f"its input {reason}"
            continue
        own = {graph.leaf_of[value]: part for value, part in state.items() if value in graph.leaf_of}
        leaves = {leaf: (graph.whole(part.index, count), part.sign) for leaf, part in own.items()}
        layers = math.prod(graph.steps)
        found.append(Scaling(channels=layers * count, leaves=leaves, layers=layers))
    return found, left


_State = dict[int, Channels]


def _start(eqn: Equation, side: int) -> tuple[Channels, int]:
    """Number the channels of a layer's input in the order of its weight's rows."""
    shape = eqn.in_avals[side].shape
    if eqn.primitive == "conv_general_dilated":
        axes: Sequence[int] = (eqn.params["dimension_numbers"].lhs_spec[1],)
    else:
        axes = eqn.params["dimension_numbers"][0][side]
    count = int(np.prod([shape[axis] for axis in axes]))
    index = np.arange(count).reshape([shape[axis] for axis in axes])
    index = np.transpose(index, np.argsort(axes)) if len(axes) > 1 else index
    return Channels(index.reshape([n if axis in axes else 1 for axis, n in enumerate(shape)]), 1), count


def _solve(graph: FlatGraph, state: _State, queue: Iterable[int]) -> tuple[_State | None, str]:
    """Extend a set of scaled values until every operation that touches one is satisfied; or say what stands in the way."""
    queue = [*queue, *(place for value in state for place in graph.touching.get(value, ()))]
    for value in state:
        if value in graph.ends:
            return None, f"comes from {graph.ends[value]}"
    while queue:
        node = graph.nodes[queue.pop(0)]
        known = {slot: state[value] for slot, value in _slots(node) if value in state}
        if not known:
            continue
        options, reason = _options(graph, node, known, state)
        if not options:
            return None, reason
        if len(options) == 1:
            reason = _take(graph, state, queue, options[0])
            if reason:
                return None, reason
            continue
        first = ""
        for option in options:
            branch, rest = dict(state), list(queue)
            reason = _take(graph, branch, rest, option)
            if not reason:
                solved, reason = _solve(graph, branch, rest)
                if solved is not None:
                    return solved, ""
            first = first or reason
        return None, first
    return state, ""


def _slots(node: Node) -> list[tuple[int, int]]:
    """(slot, value): operands are slots from 0 up, results from -1 down."""
    operands = [(slot, value) for slot, value in enumerate(node.operands) if value >= 0]
    return operands + [(-1 - slot, value) for slot, value in enumerate(node.results)]


def _options(
    graph: FlatGraph, node: Node, known: Mapping[int, Channels], state: _State
) -> tuple[list[dict[int, Channels]], str]:
    """The ways to satisfy an operation, by value."""
    values = dict(_slots(node))
    name = graph.traced.names.get(node.eqn.path, node.eqn.primitive)
    found = []
    for option in alternatives(node.eqn, known, node.fixed):
        wanted: dict[int, Channels] = {}
        fits = all(option.get(slot) == own for slot, own in known.items())
        for slot, own in option.items():
            value = values.get(slot, -1)
            fits = fits and value >= 0 and wanted.get(value, own) == own and state.get(value, own) == own
            wanted[value] = own
        # The same value at a slot that shall stay as it is would be scaled too.
        fits = fits and not any(value in wanted and slot not in option for slot, value in values.items())
        if fits:
            found.append(wanted)
    return found, f"goes through {name}, which a scale cannot pass"


def _take(graph: FlatGraph, state: _State, queue: list[int], option: Mapping[int, Channels]) -> str:
    """Scale the values of an option; say what is wrong with that, if anything is."""
    for value, own in option.items():
        if value not in state:
            if value in graph.ends:
                return f"comes from {graph.ends[value]}"
            state[value] = own
            queue += graph.touching.get(value, [])
    return ""
