"""A graph of ONNX as this package has it: nodes in their order, tensors read, graphs within graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"
"""The domain of the operators that ONNX Runtime has beside the standard's."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """An operation.

    Args:
      op: the operator; of another domain than the standard's, with it: ``com.microsoft:Gelu``.
      name: what messages call it.
      inputs: names of values; "" for one that is left out.
      outputs: likewise.
      attributes: numbers, texts, lists of them, arrays, and graphs.
      version: of the operator set.
      stored: whether its weight comes as this package stores it: output channels last.

    Example:
      >>> Node(op="Relu", name="r", inputs=("x",), outputs=("y",)).get("alpha", 1.0)
      1.0
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = 1
    stored: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what it is where the file does not say."""
        return self.attributes.get(name, default)

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs within, by attribute."""
        return {name: value for name, value in self.attributes.items() if isinstance(value, Graph)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Port:
    """An input or an output of a graph.

    Args:
      name: of the value.
      dtype: of its elements; None if the file does not say, or it is no array.
      dims: lengths, names of lengths, or None where nothing is said; None for all if not even their number is.
    """

    name: str
    dtype: np.dtype | None = None
    dims: tuple[int | str | None, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Nodes, each after those whose values it takes.

    Args:
      nodes: the operations.
      inputs: what is given to it.
      outputs: names of the values that it gives.
      constants: tensors by name.
      leaves: which values are variables: the leaf's path, by name.
      name: what messages call it.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    leaves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""


def every_graph(graph: Graph) -> Iterator[Graph]:
    """The graph and all within it, outer ones first."""
    yield graph
    for node in graph.nodes:
        for inner in node.graphs.values():
            yield from every_graph(inner)


def every_node(graph: Graph) -> Iterator[Node]:
    """The nodes of the graph and of all within it."""
    for one in every_graph(graph):
        yield from one.nodes


def mapped(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """The graph with a change made to it and to all within it, inner ones first."""
    nodes = []
    for node in graph.nodes:
        if inner := node.graphs:
            attributes = {**node.attributes, **{name: mapped(one, change) for name, one in inner.items()}}
            node = dataclasses.replace(node, attributes=attributes)
        nodes.append(node)
    return change(dataclasses.replace(graph, nodes=tuple(nodes)))


def taken(node: Node) -> list[str]:
    """The names that a node needs from outside: its inputs, and what the graphs within it do not make themselves.

    Example:
      >>> inner = Graph(nodes=(Node(op="Relu", name="r", inputs=("a",), outputs=("b",)),), inputs=(), outputs=(Port(name="b"),))
      >>> taken(Node(op="If", name="i", inputs=("c",), outputs=("y",), attributes={"then_branch": inner}))
      ['c', 'a']
    """
    names = [name for name in node.inputs if name]
    for inner in node.graphs.values():
        own = {port.name for port in inner.inputs} | set(inner.constants) | set(inner.leaves)
        for one in inner.nodes:
            names += [name for name in taken(one) if name not in own]
            own.update(one.outputs)
        names += [port.name for port in inner.outputs if port.name not in own]
    return list(dict.fromkeys(names))
