"""A graph evaluated on values of jax: under `jax.jit` it costs nothing at run time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax.core.errors import ArtifactError, one_line
from lepton_jax.core.foreign_text import shown
from lepton_jax.interchange.onnx.host import is_dim, is_host, lengths, on_device
from lepton_jax.interchange.onnx.parts import Graph, Node
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.site import Budget, Codes, Rule, Site, TooMuchError


class NodeError(ArtifactError):
    """A node that cannot be evaluated; says which, on values of which shapes, and why.

    Attributes:
      too_much: whether it asks for more than the file's bytes may.
    """

    too_much = False


def evaluate(graph: Graph, leaves: Mapping[str, Any], given: Mapping[str, Any], budget: Budget) -> tuple[Any, ...]:
    """Return the outputs of a graph.

    Args:
      graph: with constants and variables.
      leaves: variables by path.
      given: values of the inputs, and of what graphs around it made, by name.
      budget: what may be made.

    Raises:
      NodeError: for a node that cannot be evaluated.
    """
    values: dict[str, Any] = {**given, **graph.constants, **{name: leaves[path] for name, path in graph.leaves.items()}}
    for node in graph.nodes:
        values.update(zip(node.outputs, _results(node, values, leaves, budget)))
    return tuple(values[port.name] for port in graph.outputs)


def _results(node: Node, values: Mapping[str, Any], leaves: Mapping[str, Any], budget: Budget) -> Sequence[Any]:
    def inner(graph: Graph, given: Mapping[str, Any]) -> tuple[Any, ...]:
        return evaluate(graph, leaves, {**values, **given}, budget)

    taken = [values[name] if name else None for name in node.inputs]
    try:
        budget.turn()
        with jax.named_scope(re.sub(r"[^0-9A-Za-z_.]+", "_", node.name)[:80] or node.op):
            return apply(RULES[node.op], Site(node, budget, inner), taken)
    except NodeError:
        raise
    except Exception as error:  # whatever rules, numpy and jax raise of what strangers wrote
        on = ", ".join(_described(value) for value in taken)
        made = NodeError(f"{shown(node.op)} {shown(node.name)!r} on ({on}): {one_line(error)}")
        made.too_much = isinstance(error, TooMuchError)
        raise made from error


def apply(rule: Rule, site: Site, values: Sequence[Any]) -> tuple[Any, ...]:
    """Apply a rule to values as it takes them.

    Raises:
      ValueError: for an input that has to be known while tracing, and is not.
    """
    given, moved = [], None
    for place, value in enumerate(values):
        if isinstance(value, Codes):
            if rule.codes == "integers" or place in rule.host:
                value = value.integers()
            elif rule.codes == "moved":
                moved, value = value.dtype, value.value
        if place in rule.host and not is_host(value):
            raise ValueError(
                f"its input {place} must be known when the model is compiled, and depends on the values of the model's inputs"
            )
        if not rule.both and place not in rule.host and isinstance(value, (np.ndarray, np.generic)):
            value = on_device(value)
        given.append(value)
    with np.errstate(all="ignore"):
        out = rule.function(site, *given)
    results = tuple(out) if isinstance(out, (tuple, list)) else (out,)
    if moved is not None:
        results = (Codes(results[0], moved), *results[1:])
    return tuple(_checked(site, one) for one in results)


def _checked(site: Site, value: Any) -> Any:
    if isinstance(value, Codes):
        site.room(value.shape, value.dtype)
        return value
    if is_dim(value):
        return lengths((value,))[0:1].reshape(())
    if isinstance(value, jax.Array):
        site.room(value.shape, value.dtype)
        return value
    return value if value is None or isinstance(value, tuple) else np.asarray(value)


def _described(value: Any) -> str:
    if value is None or isinstance(value, tuple):
        return "none" if value is None else f"{len(value)} values"
    return f"{np.dtype(value.dtype)}[{','.join(map(str, value.shape))}]"
