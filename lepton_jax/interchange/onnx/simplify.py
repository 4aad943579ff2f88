"""A graph without what is known already and what nobody needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jax.interchange.onnx.evaluate import apply
from lepton_jax.interchange.onnx.host import is_host
from lepton_jax.interchange.onnx.parts import Graph, Node, every_graph, mapped, taken
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.site import Budget, Site

_MOST = 1 << 16
"""Elements of what is kept computed."""


def folded(graph: Graph, budget: Budget) -> Graph:
    """Return the graph with nodes of constants alone computed, and with one branch where the condition is known."""
    return _folded(graph, {}, budget)


def _folded(graph: Graph, outer: Mapping[str, Any], budget: Budget) -> Graph:
    known, own = {**outer, **graph.constants}, dict(graph.constants)
    for name in (*graph.leaves, *(port.name for port in graph.inputs)):
        known.pop(name, None)
    nodes = []
    for node in graph.nodes:
        made = _computed(node, known, budget)
        if made is not None:
            own.update(made)
            known.update(made)
            continue
        condition = np.asarray(known.get(node.inputs[0], ())) if node.op == "If" and node.inputs else np.zeros(0)
        if condition.size == 1:
            chosen = node.get("then_branch" if bool(condition.reshape(())) else "else_branch")
            node = dataclasses.replace(node, attributes={"then_branch": chosen, "else_branch": chosen})
        if inner := node.graphs:
            small = {name: _folded(one, known, budget) for name, one in inner.items()}
            node = dataclasses.replace(node, attributes={**node.attributes, **small})
        for name in node.outputs:
            known.pop(name, None)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=own)


def _computed(node: Node, known: Mapping[str, Any], budget: Budget) -> dict[str, Any] | None:
    """What a node gives, if all that it takes is known and it computes with such values."""
    rule = RULES[node.op]
    names = [name for name in node.inputs if name]
    if not rule.both or node.graphs or not all(name in known for name in names) or node.op == "Identity":
        return None
    if not names and node.op != "Constant":
        return None
    site = Site(node, budget, lambda graph, given: ())
    try:
        results = apply(rule, site, [known[name] if name else None for name in node.inputs])
    except Exception:  # whatever it is, it is said where the graph is evaluated, if anything needs it
        return None
    arrays = all(isinstance(one, np.ndarray) and one.dtype != object and is_host(one) and one.size <= _MOST for one in results)
    return {name: one for name, one in zip(node.outputs, results) if name} if arrays else None


def pruned(graph: Graph) -> Graph:
    """Return the graph without nodes, constants and variables that no output needs."""

    def change(one: Graph) -> Graph:
        needed = {port.name for port in one.outputs}
        kept: list[Node] = []
        for node in reversed(one.nodes):
            if needed.intersection(filter(None, node.outputs)):
                kept.append(node)
                needed.update(taken(node))
        constants = {name: value for name, value in one.constants.items() if name in needed}
        leaves = {name: path for name, path in one.leaves.items() if name in needed}
        return dataclasses.replace(one, nodes=tuple(kept[::-1]), constants=constants, leaves=leaves)

    return mapped(graph, change)


def read_leaves(graph: Graph) -> set[str]:
    """Paths of the variables that are left."""
    return {path for one in every_graph(graph) for path in one.leaves.values()}
