"""Weights that branches and loops move before they multiply by them, moved where the weights are: once, for all branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jax.interchange.onnx.moved import MOVES, is_weight
from lepton_jax.interchange.onnx.parts import Graph, Node, every_graph


def hoisted(graph: Graph, aliases: dict[str, str]) -> Graph:
    """Return the graph with nodes that move its weights in it, and not in graphs within it.

    Args:
      graph: any; the graphs within it were done before.
      aliases: gets, for each value within that is another's equal now, the other's name.
    """
    return _Hoist(graph, aliases).done()


class _Hoist:
    def __init__(self, graph: Graph, aliases: dict[str, str]) -> None:
        self.root, self.aliases = graph, aliases
        self.nodes: list[Node] = []
        self.constants = dict(graph.constants)
        self.made: set[str] = set()
        self.known: dict[Any, tuple[str, ...]] = {}
        self.names = {name for one in every_graph(graph) for name in (*one.constants, *(p.name for p in one.inputs))}

    def done(self) -> Graph:
        """The outermost graph."""
        own = [self._node(node, {}, {}) for node in self.root.nodes]
        return dataclasses.replace(self.root, nodes=(*self.nodes, *own), constants=self.constants)

    def _node(self, node: Node, renamed: Mapping[str, str], constants: Mapping[str, np.ndarray]) -> Node:
        inner = {name: self._graph(one, renamed, constants) for name, one in node.graphs.items()}
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        if not inner and inputs == node.inputs:
            return node
        return dataclasses.replace(node, inputs=inputs, attributes={**node.attributes, **inner})

    def _graph(self, graph: Graph, outer: Mapping[str, str], known: Mapping[str, np.ndarray]) -> Graph:
        renamed, constants, nodes = dict(outer), {**known, **graph.constants}, []
        own = {port.name for port in graph.inputs} | {name for node in graph.nodes for name in node.outputs}
        for node in graph.nodes:
            inputs = tuple(renamed.get(name, name) for name in node.inputs)
            if self._moves(node, inputs, constants, own):
                outs = self._there(node, inputs, constants)
                renamed.update(zip(node.outputs, outs))
                self.aliases.update({a: b for a, b in zip(node.outputs, outs) if a != b})
            else:
                nodes.append(self._node(node, renamed, constants))
        outputs = tuple(dataclasses.replace(port, name=renamed.get(port.name, port.name)) for port in graph.outputs)
        return dataclasses.replace(graph, nodes=tuple(nodes), outputs=outputs)

    def _moves(self, node: Node, inputs: tuple[str, ...], constants: Mapping[str, np.ndarray], own: set[str]) -> bool:
        if node.op not in MOVES or node.graphs or not inputs:
            return False
        weights = [name for name in inputs if name in self.made or self._is_weight(name, constants, own)]
        there = {"", *weights, *constants, *self.constants}
        return bool(weights) and there.issuperset(inputs)

    def _is_weight(self, name: str, constants: Mapping[str, np.ndarray], own: set[str]) -> bool:
        return name not in constants and name not in own and name in self.root.constants and is_weight(self.root, name)

    def _there(self, node: Node, inputs: tuple[str, ...], constants: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        """The names of what a node gives in the outermost graph, where an equal one may be already."""
        arrays = [constants.get(name) for name in inputs]  # what is not of the outermost graph goes there with the node
        keys = tuple(
            name if array is None else (array.dtype.str, array.shape, array.tobytes()) for name, array in zip(inputs, arrays)
        )
        key = (node.op, node.version, repr(sorted(node.attributes.items())), keys)
        if key not in self.known:
            outs = tuple(self._fresh(name) for name in node.outputs)
            given = [
                name if array is None else self._constant(array, f"{outs[0]}_{i}")
                for i, (name, array) in enumerate(zip(inputs, arrays))
            ]
            self.nodes.append(dataclasses.replace(node, inputs=tuple(given), outputs=outs))
            self.made.update(outs)
            self.known[key] = outs
        return self.known[key]

    def _constant(self, array: Any, name: str) -> str:
        whole = self._fresh(name)
        self.constants[whole] = array
        return whole

    def _fresh(self, name: str) -> str:
        whole, number = name, 1
        while whole in self.names or whole in self.made:
            number += 1
            whole = f"{name}_{number}"
        self.names.add(whole)
        return whole
