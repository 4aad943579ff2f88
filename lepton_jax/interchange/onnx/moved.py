"""Weights that a file cuts, joins and turns before it multiplies by them, done once: exporters reorder gates in this way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jax.interchange.onnx.element_types import is_real
from lepton_jax.interchange.onnx.evaluate import apply
from lepton_jax.interchange.onnx.parts import Graph, Node
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.site import Budget, Site

MOVES = {"Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that only move elements, or change their type."""


def with_moved(graph: Graph, read: Mapping[str, list[tuple[Node, int]]], budget: Budget, names: dict[str, str]) -> Graph:
    """Return the graph with moved weights in place of weights and the nodes that move them.

    A weight that is read in another way too stays as it is, and so do all that it is joined with: one leaf may not become two.

    Args:
      graph: whose constants are read.
      read: where each value is read, in it and in the graphs within it.
      budget: what may be made.
      names: gets, for each moved weight, the name of the first weight that is in it.
    """
    made, sources = _made(graph, budget)
    nodes = {name: node for node in graph.nodes for name in node.outputs if name in made}
    inside = {id(node) for node in nodes.values()}
    left = {name for name in made if any(id(node) not in inside for node, _ in read.get(name, []))}
    good, used = set[str](), set[str]()
    for group in _groups(sources):
        weights = {one for name in group for one in sources[name]}
        ends = [name for name in group if name in left]
        alone = all(id(node) in inside for one in weights for node, _ in read.get(one, []))
        small = sum(made[name].size for name in ends) <= sum(graph.constants[one].size for one in weights)
        if weights and ends and alone and small:
            good.update(group)
            used |= weights
            names.update({name: sources[name][0] for name in ends if sources[name]})
    gone = {id(node) for name, node in nodes.items() if name in good}
    kept = {name: array for name, array in graph.constants.items() if name not in used}
    constants = kept | {name: made[name] for name in made if name in good & left}
    return dataclasses.replace(graph, nodes=tuple(node for node in graph.nodes if id(node) not in gone), constants=constants)


def _made(graph: Graph, budget: Budget) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """What nodes make that only move constants, and of which weights it is."""
    made: dict[str, np.ndarray] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        names = [name for name in node.inputs if name]
        if node.op not in MOVES or not names or not all(name in made or name in graph.constants for name in names):
            continue
        given: list[Any] = [made.get(name, graph.constants.get(name)) if name else None for name in node.inputs]
        if not is_real(np.asarray(given[0]).dtype):
            continue
        try:
            results = apply(RULES[node.op], Site(node, budget, lambda graph, given: ()), given)
        except Exception:  # said where the graph is evaluated
            continue
        if not all(isinstance(one, np.ndarray) and is_real(one.dtype) for one in results):
            continue
        of = [one for name in names for one in (sources[name] if name in made else (name,) * is_weight(graph, name))]
        for name, result in zip(node.outputs, results):
            made[name], sources[name] = result, tuple(dict.fromkeys(of))
    return made, sources


def is_weight(graph: Graph, name: str) -> bool:
    """Whether a constant of a graph may be a variable, by its elements."""
    array = graph.constants[name]
    return is_real(array.dtype) and array.size > 1


def _groups(sources: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Values that have weights in common, one directly or through others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for weights in sources.values():
        for one in weights[1:]:
            parent[root(one)] = root(weights[0])
    groups: dict[str, list[str]] = {}
    for name, weights in sources.items():
        if weights:
            groups.setdefault(root(weights[0]), []).append(name)
    return list(groups.values())
