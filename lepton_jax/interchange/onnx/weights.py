"""Which tensors of a file are a model's variables, how they are called, and in which layout they are kept.

Floating tensors of more than one element are variables, and integers that are scaled are packed ones; but not what decides a
shape, an axis or a count: that is found by walking backwards from where such things are read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from lepton_jax.interchange.onnx.element_types import is_real
from lepton_jax.interchange.onnx.hoist import hoisted
from lepton_jax.interchange.onnx.moved import with_moved
from lepton_jax.interchange.onnx.packed import CodesOf, taken_as_codes
from lepton_jax.interchange.onnx.parts import Graph, Node, every_graph, every_node, mapped
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.site import Budget

_KERNELS: Mapping[str, int] = {
    "Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "com.microsoft:FusedConv": 1, "ConvTranspose": 1,
}  # fmt: skip
_RECURRENT = {"LSTM", "GRU", "RNN"}
_SLOTS: Mapping[str, Mapping[int, str]] = {
    "BatchNormalization": {1: "scale", 2: "bias", 3: "mean", 4: "var"},
    "Gather": {0: "embedding"},
    "Gemm": {1: "kernel", 2: "bias"},
    "Conv": {1: "kernel", 2: "bias"},
    "ConvTranspose": {1: "kernel", 2: "bias"},
    "QLinearConv": {3: "kernel", 8: "bias"},
    "MatMul": {0: "kernel", 1: "kernel"},
    "InstanceNormalization": {1: "scale", 2: "bias"},
    "LayerNormalization": {1: "scale", 2: "bias"},
    "Add": {0: "bias", 1: "bias"},
    "Mul": {0: "scale", 1: "scale"},
    **{name: {1: "kernel", 2: "recurrent_kernel", 3: "bias", 7: "peepholes"} for name in ("LSTM", "GRU", "RNN")},
}
"""What a tensor is called that the file gives only a number."""
_NUMBERED = re.compile(
    r"onnx::.*|[\d_]+|(.*/)?_?(constant|const|const_fold_opt_|val|tensor|initializer|[tvw])(_?\d+)+(_output_\d+)?",
    re.IGNORECASE,
)
"""Names that say nothing."""
_STATISTICS = {"BatchNormalization": (3, 4)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Leaf:
    """A variable.

    Args:
      name: of the value in the file.
      path: in the model's variables.
      value: an array in the layout of `order`, or a packed leaf.
      order: how the file's axes were reordered; None if they were not.
      kind: a tensor of the file; what it scales; or integers, which operators of integers take.
      dtype: of the tensor, or of the integers.
      also: names of other values of the file that are equal to it.
    """

    name: str
    path: str
    value: Any
    order: tuple[int, ...] | None = None
    kind: Literal["tensor", "scaled", "integers"] = "tensor"
    dtype: np.dtype | None = None
    also: tuple[str, ...] = ()

    def record(self) -> Record:
        """What is known of it without its numbers."""
        packed = dataclasses.replace(self.value, words=self.value.words[:0]) if self.kind == "integers" else None
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "value"}
        return Record(**own, shape=tuple(self.value.shape), packed=packed)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A variable as the file has it, without its numbers.

    Args:
      name, path, order, kind, dtype, also: see `Leaf`.
      shape: in the model.
      packed: of integers, their format, scale and zero point.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None
    kind: Literal["tensor", "scaled", "integers"] = "tensor"
    dtype: np.dtype | None = None
    also: tuple[str, ...] = ()
    packed: Any = None

    def as_in_file(self, array: Any) -> np.ndarray:
        """An array of this leaf's shape with axes as the file has them."""
        return np.asarray(array) if self.order is None else np.transpose(array, np.argsort(self.order))


def on_host(graph: Graph) -> set[str]:
    """Names of values that have to be known while tracing."""
    makers: dict[str, list[Node]] = {}
    wanted: list[str] = []
    for node in every_node(graph):
        for name in filter(None, node.outputs):
            makers.setdefault(name, []).append(node)
        wanted += [node.inputs[place] for place in RULES[node.op].host if place < len(node.inputs)]
    seen: set[str] = set()
    while wanted:
        if (name := wanted.pop()) in seen:
            continue
        seen.add(name)
        for node in makers.get(name, ()):
            if node.op not in ("Shape", "Size"):
                wanted += [one for one in node.inputs if one]
                wanted += [port.name for inner in node.graphs.values() for port in inner.outputs]
    return seen


def uses(graph: Graph) -> dict[str, list[tuple[Node, int]]]:
    """Where each value is read, in a graph and in those within it."""
    found: dict[str, list[tuple[Node, int]]] = {}
    for node in every_node(graph):
        for place, name in enumerate(node.inputs):
            if name:
                found.setdefault(name, []).append((node, place))
    for one in every_graph(graph):
        for port in one.outputs:
            found.setdefault(port.name, []).append((_END, 0))
    return found


_END = Node(op="", name="", inputs=(), outputs=())


def with_leaves(graph: Graph, budget: Budget) -> tuple[Graph, list[Leaf]]:
    """Return the graph with its variables marked, and the variables."""
    host, names, first = on_host(graph), _Names(), dict[str, str]()
    scaled: dict[str, CodesOf] = {}
    graph = mapped(graph, lambda one: taken_as_codes(one, uses(one), scaled))
    aliases: dict[str, str] = {}
    graph = mapped(graph, lambda one: hoisted(one, aliases))
    graph = mapped(graph, lambda one: with_moved(one, uses(one), budget, first))
    equal: dict[str, list[str]] = {}
    for name, other in aliases.items():
        equal.setdefault(other, []).append(name)
    found: list[Leaf] = []
    leaves: dict[int, dict[str, str]] = {}
    stored: set[int] = set()
    for one in every_graph(graph):
        read, own = uses(one), dict[str, Any](item for item in one.constants.items() if is_leaf(*item, host))
        own |= {name: scaled[name] for name in one.leaves}
        orders = dict(_orders(own, read))
        paths: dict[str, str] = {}
        for name, value in own.items():
            if (order := orders.get(name)) is not None:
                value = value.permuted(order) if name in scaled else np.ascontiguousarray(value.transpose(order))
                stored.update(id(node) for node, _ in read[name])
            paths[name] = names.path(first.get(name, name), read.get(name, []))
            kind: Any = "tensor" if name not in scaled else "integers" if value.as_they_are else "scaled"
            dtype = value.codes.dtype if name in scaled else value.dtype
            value = value.made() if name in scaled else value
            also = tuple(equal.get(name, ()))
            found.append(Leaf(name=name, path=paths[name], value=value, order=order, kind=kind, dtype=dtype, also=also))
        leaves[id(one.constants)] = paths

    def marked(one: Graph) -> Graph:
        own = leaves[id(one.constants)]
        nodes = tuple(dataclasses.replace(node, stored=True) if id(node) in stored else node for node in one.nodes)
        kept = {name: value for name, value in one.constants.items() if name not in own}
        return dataclasses.replace(one, nodes=nodes, constants=kept, leaves=own)

    return mapped(graph, marked), found


def is_leaf(name: str, value: np.ndarray, host: set[str]) -> bool:
    """Whether a tensor is a variable."""
    return is_real(value.dtype) and value.size > 1 and name not in host


def _orders(tensors: Mapping[str, Any], read: Mapping[str, list[tuple[Node, int]]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """How the axes of weights are reordered so that output channels are last, where all that read them know."""
    for name, value in tensors.items():
        places = read.get(name, [])
        ndim = len(value.shape)
        if not places:
            continue
        if all(_KERNELS.get(node.op) == place for node, place in places) and ndim > 2:
            flipped = {node.op == "ConvTranspose" for node, _ in places}
            if len(flipped) == 1:
                yield name, (*range(2, ndim), *((0, 1) if True in flipped else (1, 0)))
        elif all(node.op == "Gemm" and place == 1 and node.get("transB", 0) for node, place in places) and ndim == 2:
            yield name, (1, 0)
    for name in _recurrent(tensors, read):
        yield name, (0, 2, 1)


def _recurrent(tensors: Mapping[str, Any], read: Mapping[str, list[tuple[Node, int]]]) -> set[str]:
    """Weights of recurrent layers alone, both of each layer."""

    def fits(name: str) -> bool:
        places = read.get(name, [])
        alone = all(node.op in _RECURRENT and place in (1, 2) for node, place in places)
        return bool(places) and alone and len(tensors[name].shape) == 3

    found = {name for name in tensors if fits(name)}
    while lost := {name for name in found for node, _ in read[name] if not found.issuperset(node.inputs[1:3])}:
        found -= lost
    return found


class _Names:
    """Gives variables readable paths, each once."""

    def __init__(self) -> None:
        self.given: set[str] = set()
        self.above: set[str] = set()

    def path(self, name: str, places: list[tuple[Node, int]]) -> str:
        node, place = places[0] if places else (_END, 0)
        statistic = bool(places) and all(place in _STATISTICS.get(node.op, ()) for node, place in places)
        text = name.removesuffix(":0")
        if _NUMBERED.fullmatch(text) and node.name:
            slot = _SLOTS.get(node.op, {}).get(place, f"input_{place}")
            text = f"{node.name.removesuffix(f'/{node.op}')}/{slot}"
        parts = [re.sub(r"[^0-9A-Za-z_.\-]+", "_", part).strip("_") for part in text.split("/")]
        where, names = "state" if statistic else "params", [part for part in parts if part] or ["tensor"]
        ends = any("/".join((where, *names[:i])) in self.given for i in range(1, len(names)))
        path = f"{where}/{'.'.join(names)}" if ends else "/".join((where, *names))  # a leaf has none below it
        whole, number = path, 1
        while whole in self.given or whole in self.above:
            number += 1
            whole = f"{path}_{number}"
        self.given.add(whole)
        self.above.update(whole.rsplit("/", i)[0] for i in range(1, whole.count("/")))
        return whole
