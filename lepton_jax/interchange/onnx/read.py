"""A file of a stranger as a graph: what does not fit together is refused before anything is computed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from lepton_jax.core.errors import ArtifactError, one_line
from lepton_jax.core.files import open_file
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import most_turns
from lepton_jax.interchange.onnx.element_types import NUMBERS
from lepton_jax.interchange.onnx.functions import Inliner, full_name
from lepton_jax.interchange.onnx.parts import Graph, Node, Port, taken
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.tensors import Folder, array_of

NEWEST = 28
"""The newest operator set whose rules these are."""
_LARGEST, _MOST_DEEP = 2**31 - 1, 24
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs"}


class Parsed(NamedTuple):
    """A file.

    Attributes:
      graph: what it computes.
      proto: the `ModelProto`, functions written out.
      stored: its bytes, those of files beside it counted.
      version: of the standard's operator set.
    """

    graph: Graph
    proto: Any
    stored: int
    version: int


def read(path: str | os.PathLike[str]) -> Parsed:
    """Read a file.

    Raises:
      ArtifactError: for what is no ONNX file, or one whose parts do not fit together; says what and where.
      OSError: if it cannot be read.
    """
    import onnx

    name = os.fspath(path)
    with open_file(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
            raise ArtifactError(f"{name} has {size} bytes; one of ONNX has {_LARGEST} at most, and weights in files beside it")
        data = file.read()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # whatever the reader of foreign bytes raises
        raise ArtifactError(f"{name} is no ONNX file, or graphs in it are too deep: {one_line(error)}") from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise ArtifactError(f"{name} is no ONNX file with a graph that has outputs")
    try:
        return parsed(proto, Folder(path), len(data))
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from error.__cause__


def parsed(proto: Any, folder: Folder, stored: int) -> Parsed:
    """Read a `ModelProto`; it is changed: functions are written out in it.

    Raises:
      ArtifactError: as `read`.
    """
    versions = {one.domain if one.domain != "ai.onnx" else "": one.version for one in proto.opset_import}
    if versions.get("", 1) > NEWEST:
        raise ArtifactError(f"operator set {versions['']} is newer than {NEWEST}; convert it with onnx.version_converter")
    functions = {f"{one.domain}:{one.name}" for one in proto.functions}
    Inliner(proto.functions, versions, set(RULES) - functions, most_turns(stored)).graph(proto.graph)
    del proto.functions[:]
    if missing := unknown(proto.graph):
        lines = [f"{op} at {', '.join(places[:5])}{', ...' if len(places) > 5 else ''}" for op, places in missing.items()]
        open_ended = [op for op in missing if op in _OPEN_ENDED]
        why = (
            f". How much {' and '.join(open_ended)} finds depends on the values, so that no shape is known: "
            if open_ended
            else ""
        )
        advice = "cut the file before it, by onnx.utils.extract_model, and do that part in numpy" if open_ended else ""
        raise ArtifactError(f"no rule for the operators {'; '.join(lines)}{why}{advice}")
    graph = _Reader(folder).graph(proto.graph, frozenset(), 0)
    _clear(proto.graph)
    return Parsed(graph, proto, stored + folder.stored, versions.get("", 1))


_OPEN_ENDED = ("NonMaxSuppression", "Unique")


def _clear(graph: Any) -> None:
    """Remove what the inliner noted."""
    for node in graph.node:
        node.ClearField("doc_string")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                _clear(inner)


def unknown(graph: Any) -> dict[str, list[str]]:
    """Operators that there is no rule for, and where they are."""
    found: dict[str, list[str]] = {}
    todo = [graph]
    while todo:
        for node in todo.pop().node:
            if full_name(node) not in RULES:
                found.setdefault(shown(full_name(node)), []).append(_where(node))
            todo += [inner for attribute in node.attribute for inner in (attribute.g, *attribute.graphs)]
    return found


def _where(node: Any) -> str:
    return shown(node.name or next((name for name in node.output if name), "a node without a name"))


class _Reader:
    """Reads graphs, and checks that every name is made once, and before it is used."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def graph(self, graph: Any, outer: frozenset[str], depth: int) -> Graph:
        if depth > _MOST_DEEP:
            raise ArtifactError(f"graphs within graphs are deeper than {_MOST_DEEP}")
        if graph.sparse_initializer:
            raise ArtifactError(
                f"the sparse tensor {shown(graph.sparse_initializer[0].values.name)!r} is not read; make it dense"
            )
        constants = {}
        for tensor in graph.initializer:
            if tensor.name in constants or not tensor.name:
                raise ArtifactError(f"two tensors are called {shown(tensor.name)!r}")
            constants[tensor.name] = array_of(tensor, self.folder)
        inputs = tuple(_port(one) for one in graph.input if one.name not in constants)
        makers: dict[str, int] = {}
        names = {port.name for port in inputs} | set(constants)
        if len({port.name for port in inputs}) != len(inputs):
            raise ArtifactError("two inputs have the same name")
        for place, node in enumerate(graph.node):
            for name in filter(None, node.output):
                if name in makers or name in names:
                    raise ArtifactError(f"the value {shown(name)!r} is made twice, the second time by {_where(node)}")
                makers[name] = place
        seen = frozenset(outer | names | set(makers))
        nodes = [self.node(node, seen, depth) for node in graph.node]
        outputs = tuple(_port(one) for one in graph.output)
        if lost := [port.name for port in outputs if port.name not in seen]:
            raise ArtifactError(f"no node makes the output {', '.join(shown(name) for name in lost)}")
        ordered = _ordered(nodes, makers, names | outer)
        return Graph(nodes=ordered, inputs=inputs, outputs=outputs, constants=constants, name=graph.name)

    def node(self, node: Any, seen: frozenset[str], depth: int) -> Node:
        attributes: dict[str, Any] = {}
        for one in node.attribute:
            if one.name in attributes:
                raise ArtifactError(f"{_where(node)}: the attribute {shown(one.name)} is given twice")
            attributes[one.name] = self.attribute(one, node, seen, depth)
        where = node.name or next((name for name in node.output if name), node.op_type)
        made = Node(
            op=full_name(node), name=where, inputs=tuple(node.input), outputs=tuple(node.output), attributes=attributes,
            version=int(node.doc_string),
        )  # fmt: skip
        if lost := [name for name in made.inputs if name and name not in seen]:
            raise ArtifactError(f"{_where(node)}: no node makes its input {', '.join(shown(name) for name in lost)}")
        return made

    def attribute(self, one: Any, node: Any, seen: frozenset[str], depth: int) -> Any:
        kind = _ATTRIBUTES.get(one.type)
        if kind == "g":
            return self.graph(one.g, seen, depth + 1)
        if kind == "t":
            return (
                array_of(one.t, self.folder)
                if one.t.data_type != 8
                else [text.decode("utf-8", "replace") for text in one.t.string_data]
            )
        if kind == "s":
            return one.s.decode("utf-8", "replace")
        if kind == "strings":
            return [text.decode("utf-8", "replace") for text in one.strings]
        if kind in ("floats", "ints"):
            return list(getattr(one, kind))
        if kind in ("f", "i"):
            return getattr(one, kind)
        if one.type in (11, 12, 13, 14):  # sparse tensors and types, of which a rule that needs one says so
            return None
        raise ArtifactError(f"{_where(node)}: the attribute {shown(one.name)} is of a kind that is not read ({one.type})")


def _port(value: Any) -> Port:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Port(name=value.name)
    dims: tuple[int | str | None, ...] | None = None
    if kind.HasField("shape"):
        dims = tuple(_dim(one) for one in kind.shape.dim)
    return Port(name=value.name, dtype=NUMBERS.get(kind.elem_type), dims=dims)


def _dim(one: Any) -> int | str | None:
    """A length; its name; or None, also for 0 and -1, which exporters write for what is not known."""
    if one.HasField("dim_value") and one.dim_value > 0:
        return int(one.dim_value)
    return one.dim_param if one.dim_param and one.dim_param != "?" else None


def _ordered(nodes: list[Node], makers: dict[str, int], known: Any) -> tuple[Node, ...]:
    """The nodes, each after those whose values it takes, as they stand in the file where that will do.

    Raises:
      ArtifactError: if values depend on one another in a circle.
    """
    needs = [{makers[name] for name in taken(node) if name in makers} for node in nodes]
    if all(max(need, default=-1) < place for place, need in enumerate(needs)):
        return tuple(nodes)
    done: list[int] = []
    ready = [place for place, need in enumerate(needs) if not need]
    users: dict[int, list[int]] = {}
    for place, need in enumerate(needs):
        for one in need:
            users.setdefault(one, []).append(place)
    counts = [len(need) for need in needs]
    while ready:
        done.append(place := ready.pop())
        for user in users.get(place, ()):
            counts[user] -= 1
            if not counts[user]:
                ready.append(user)
    if len(done) < len(nodes):
        stuck = next(node for place, node in enumerate(nodes) if counts[place])
        raise ArtifactError(f"values depend on one another in a circle, through {shown(stuck.name)}")
    return tuple(nodes[place] for place in done)
