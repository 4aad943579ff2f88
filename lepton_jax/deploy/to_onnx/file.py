"""The file while it is written: nodes in their order, constants once each, graphs within graphs."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lepton_jax.deploy.to_onnx.tensors import Dims, is_int

OPSET, IR_VERSION = 21, 10
MICROSOFT = "com.microsoft"
"""The domain of the operations that ONNX Runtime has beside the standard's."""


def type_of(dtype: Any) -> int:
    """ONNX's number of a type of elements.

    Example:
      >>> type_of("float32")
      1
    """
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class File:
    """Nodes, constants and what symbolic lengths are in the file.

    Example:
      >>> file = File()
      >>> file.op("Add", file.const(np.float32(1)), file.const(np.float32(2))), [node.op_type for node in file.nodes]
      ('c', ['Add'])
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.made: dict[str, NodeProto] = {}
        """The node that makes each value."""
        self.domains: set[str] = set()
        self._names: dict[Any, str] = {}
        self._scopes: list[dict[Any, str]] = [{}]
        self._lists: list[list[NodeProto]] = [self.nodes]
        self._dims: dict[str, tuple[str, int]] = {}
        self._count = 0

    def fresh(self) -> str:
        """A name that nothing else has: a, b, ..., z, aa, ...: in files of small nets names are a part of the bytes."""
        self._count, left, name = self._count + 1, self._count + 1, ""
        while left:
            left, letter = divmod(left - 1, 26)
            name = chr(ord("a") + letter) + name
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node; return the name of its output, or the list of them if there are not just one."""
        outs = [self.fresh() for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(kind, list(inputs), outs, domain=domain, **given)
        self.domains.add(domain)
        self._lists[-1].append(node)
        self.made.update(dict.fromkeys(outs, node))
        return outs[0] if outputs == 1 else outs

    def once(self, key: Any, make: Callable[[], str]) -> str:
        """What was made under a key where it can be seen from here; else make it."""
        for scope in reversed(self._scopes):
            if key in scope:
                return scope[key]
        self._scopes[-1][key] = made = make()
        return made

    def const(self, array: Any, dtype: Any = None) -> str:
        """The name of a constant; equal ones are held once."""
        value = np.asarray(array) if dtype is None else np.asarray(array).astype(dtype)
        value = np.ascontiguousarray(value).reshape(value.shape)
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._names:
            name = self._names[key] = self.fresh()
            if value.dtype in (ml_dtypes.int4, ml_dtypes.uint4):
                tensor = helper.make_tensor(name, type_of(value.dtype), value.shape, _nibbles(value), raw=True)
            else:
                tensor = numpy_helper.from_array(value, name)
            self.constants[name] = tensor
        return self._names[key]

    def ints(self, values: Sequence[Any]) -> str:
        """The name of a constant vector of int64, as shapes and axes are given."""
        return self.const(np.asarray([int(value) for value in values], np.int64))

    def known(self, dims: Sequence[Any], name: str) -> None:
        """Note that an input has these lengths."""
        for axis, dim in enumerate(dims):
            if not is_int(dim):
                self._dims.setdefault(str(dim), (name, axis))

    def dim(self, dim: Any) -> str:
        """The name of a length, a vector of one int64."""
        if is_int(dim):
            return self.ints([dim])
        return self.once(("dim", str(dim)), lambda: self._dim(str(dim)))

    def _dim(self, text: str) -> str:
        if text in self._dims:
            name, axis = self._dims[text]
            return self.op("Slice", self.op("Shape", name), self.ints([axis]), self.ints([axis + 1]))
        return self._computed(ast.parse(text.replace("^", "**"), mode="eval").body)

    def _computed(self, node: ast.expr) -> str:
        """A formula of lengths, as jax writes it."""
        match node:
            case ast.Constant(value=int(value)):
                return self.ints([value])
            case ast.Name(id=name):
                return self.dim(_Symbol(name))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.op("Neg", self._computed(operand))
            case ast.BinOp(left=left, op=operator, right=right):
                kinds = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
                return self.op(kinds[type(operator)], self._computed(left), self._computed(right))
            case ast.Call(func=ast.Name(id=name), args=args):
                values = [self._computed(arg) for arg in args]
                if name in ("max", "min", "non_negative"):
                    values += [self.ints([0])] if name == "non_negative" else []
                    return self.op("Min" if name == "min" else "Max", *values)
                remainder = self.op("Mod", *values)
                if name == "mod":
                    return remainder
                return self.op("Div", self.op("Sub", values[0], remainder), values[1])
        raise ValueError(f"a length cannot be written: {ast.unparse(node)}")

    def shape(self, dims: Sequence[Any]) -> str:
        """The name of a shape, a vector of int64."""
        if all(is_int(dim) for dim in dims):
            return self.ints(dims)
        key = ("shape", *map(str, dims))
        return self.once(key, lambda: self.op("Concat", *(self.dim(dim) for dim in dims), axis=0))

    def reshape(self, name: str, dims: Dims) -> str:
        """Reshape to lengths of which one may be symbolic without being computed."""
        if sum(not is_int(dim) for dim in dims) == 1 and not any(is_int(dim) and dim == 0 for dim in dims):
            return self.op("Reshape", name, self.ints([dim if is_int(dim) else -1 for dim in dims]))
        return self.op("Reshape", name, self.shape(dims), allowzero=1 if 0 in [d for d in dims if is_int(d)] else None)

    def cast(self, name: str, dtype: Any) -> str:
        """Convert elements."""
        return self.op("Cast", name, to=type_of(dtype))

    def finish(self, name: str, output: str) -> None:
        """Give a value the name of an output."""
        self.nodes.append(helper.make_node("Identity", [name], [output]))

    @contextlib.contextmanager
    def inside(self) -> Iterator[list[NodeProto]]:
        """Add nodes to a graph within the graph, which sees all that is outside."""
        nodes: list[NodeProto] = []
        self._lists.append(nodes)
        self._scopes.append({})
        try:
            yield nodes
        finally:
            self._lists.pop()
            self._scopes.pop()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Add nodes that depend on constants alone to the outermost graph: inside a loop they would run at every step."""
        lists, scopes = self._lists, self._scopes
        self._lists, self._scopes = lists[:1], scopes[:1]
        try:
            yield
        finally:
            self._lists, self._scopes = lists, scopes

    def graph(self, name: str, nodes: Sequence[NodeProto], inputs: Sequence[Any], outputs: Sequence[Any]) -> GraphProto:
        """A graph within the graph."""
        return helper.make_graph(list(nodes), name, list(inputs), list(outputs))

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], facts: Mapping[str, str]) -> ModelProto:
        """The whole, without the nodes and constants that no output needs."""
        needed = {output.name for output in outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(out in needed for out in node.output):
                kept.append(node)
                needed.update(_read(node))
        constants = [tensor for name, tensor in self.constants.items() if name in needed]
        graph = helper.make_graph(kept[::-1], "lepton", list(inputs), list(outputs), constants)
        versions = {"": OPSET, MICROSOFT: 1}
        used = {node.domain for node in kept} | {""}
        opsets = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(used)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lepton_jax")
        helper.set_model_props(model, dict(facts))
        return model


class _Symbol:
    """A length by its name."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return self.name


def _read(node: NodeProto) -> Iterator[str]:
    """The values that a node, or a graph within it, reads."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield from (output.name for output in attribute.g.output)
            for inner in attribute.g.node:
                yield from _read(inner)


def _nibbles(array: np.ndarray) -> bytes:
    """Two codes of four bits a byte, the first in the low half."""
    codes = array.astype(np.int8).reshape(-1).view(np.uint8) & 15
    codes = np.pad(codes, (0, codes.size % 2))
    return (codes[::2] | codes[1::2] << 4).tobytes()
