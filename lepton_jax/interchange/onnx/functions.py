"""Operators that are functions of others, put in place of their calls: those of the file, and those of the standard."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lepton_jax.core.errors import ArtifactError

_MOST_DEEP = 64


def full_name(node: Any) -> str:
    """The operator of a node, with its domain if it is not the standard's."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"


class Inliner:
    """Puts functions in place of their calls.

    Args:
      functions: those of the file.
      versions: of the operator sets that the file names, by domain.
      known: operators that are not looked up.
      most: how many nodes there may be in all.
    """

    def __init__(self, functions: Iterable[Any], versions: Mapping[str, int], known: Collection[str], most: int) -> None:
        self.functions = {(one.domain, one.name, getattr(one, "overload", "")): one for one in functions}
        self.versions, self.known, self.left, self.calls = dict(versions), known, most, 0
        self.types: dict[str, Any] = {}

    def graph(self, graph: Any) -> None:
        """Change a graph in place; nodes in it then bear the version of their operator set as a prefix of `doc_string`."""
        for port in (*graph.input, *graph.value_info):
            self.types[port.name] = port.type
        for tensor in graph.initializer:
            self.types.setdefault(tensor.name, tensor)
        made = self.nodes(graph.node, self.versions, 0)
        del graph.node[:]
        graph.node.extend(made)

    def nodes(self, nodes: Iterable[Any], versions: Mapping[str, int], depth: int) -> list[Any]:
        """The nodes with their calls replaced.

        Raises:
          ArtifactError: if there are too many, or functions call one another without end.
        """
        if depth > _MOST_DEEP:
            raise ArtifactError("its functions call one another too deeply, or themselves")
        out: list[Any] = []
        for node in nodes:
            self.left -= 1
            if self.left < 0:
                raise ArtifactError("it has more nodes, functions written out, than its bytes may ask for")
            function = self._function(node, versions)
            if function is not None:
                self.calls += 1
                out += self._body(node, *function, depth)
                continue
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                    made = self.nodes(inner.node, versions, depth + 1)
                    del inner.node[:]
                    inner.node.extend(made)
            node.doc_string = str(versions.get(node.domain if node.domain != "ai.onnx" else "", 1))
            out.append(node)
        return out

    def _function(self, node: Any, versions: Mapping[str, int]) -> tuple[Any, Mapping[str, int]] | None:
        """The function that a node calls, and the versions of what it uses."""
        found = self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if found is not None:
            return found, {one.domain if one.domain != "ai.onnx" else "": one.version for one in found.opset_import}
        if node.domain not in ("", "ai.onnx") or node.op_type in self.known:
            return None
        return _standard(node, versions.get("", 1), [self._type(name) for name in node.input])

    def _type(self, name: str) -> Any:
        """The type of a value, at which some of the standard's functions look: of float32 where the file does not say."""
        import onnx

        found = self.types.get(name)
        if isinstance(found, onnx.TypeProto) and found.HasField("tensor_type") and found.tensor_type.elem_type:
            return found
        if isinstance(found, onnx.TensorProto):
            return onnx.helper.make_tensor_type_proto(found.data_type, list(found.dims))
        return onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None) if name else onnx.TypeProto()

    def _body(self, node: Any, function: Any, versions: Mapping[str, int], depth: int) -> list[Any]:
        prefix = f"{node.name or node.op_type}/{self.calls}/"
        names = {"": ""}
        for inside, outside in (*zip(function.input, node.input), *zip(function.output, node.output)):
            if outside:
                names[inside] = outside
            elif inside in function.input:
                names[inside] = ""
        names |= dict.fromkeys(list(function.input)[len(node.input) :], "")
        given = {attribute.name: attribute for attribute in node.attribute}
        given = {one.name: one for one in getattr(function, "attribute_proto", ())} | given
        body = [_renamed(one, names, prefix, given) for one in function.node]
        return self.nodes(body, versions, depth + 1)


def _standard(node: Any, version: int, types: list[Any]) -> tuple[Any, Mapping[str, int]] | None:
    """The function by which the standard defines an operator, of these types where it depends on them."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:  # type: ignore[attr-defined]
        body = schema.function_body
    elif schema.has_context_dependent_function:  # type: ignore[attr-defined]
        text = [one.SerializeToString() for one in types]
        body = onnx.FunctionProto()
        try:
            made = schema.get_context_dependent_function(node.SerializeToString(), text)  # type: ignore[attr-defined]
            body.ParseFromString(made)
        except Exception as error:  # whatever the standard's own code raises for attributes that do not fit
            raise ArtifactError(f"{node.name or node.op_type}: the standard has no function for it: {error}") from error
    else:
        return None
    whole = onnx.FunctionProto()
    whole.CopyFrom(body)
    defaults = [one.default_value for one in schema.attributes.values() if one.default_value.name]
    said = {one.name for one in whole.attribute_proto}
    whole.attribute_proto.extend(one for one in defaults if one.name not in said)
    return whole, {one.domain: one.version for one in whole.opset_import} or {"": version}


def _renamed(node: Any, names: dict[str, str], prefix: str, given: Mapping[str, Any]) -> Any:
    """A copy of a node of a function, with its values and attributes as they are where it is called."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = f"{prefix}{node.name or node.op_type}"
    _rename(copy, names, prefix)
    kept = []
    for attribute in copy.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in given:
                continue
            wanted = attribute.name
            attribute.CopyFrom(given[attribute.ref_attr_name])
            attribute.name = wanted
        for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            _rename_graph(inner, dict(names), prefix, given)
        kept.append(type(attribute)())
        kept[-1].CopyFrom(attribute)
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _rename(node: Any, names: dict[str, str], prefix: str) -> None:
    for values in (node.input, node.output):
        for i, name in enumerate(values):
            values[i] = names.setdefault(name, prefix + name)


def _rename_graph(graph: Any, names: dict[str, str], prefix: str, given: Mapping[str, Any]) -> None:
    for port in (*graph.input, *graph.initializer):
        port.name = names.setdefault(port.name, prefix + port.name)
    nodes = [_renamed(node, names, prefix, given) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for port in graph.output:
        port.name = names.setdefault(port.name, prefix + port.name)
