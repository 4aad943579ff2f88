"""Evaluating the functions of a program, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import export
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir

from lepton_jax.artifact.stablehlo.lengths import as_array
from lepton_jax.core.errors import ArtifactError

Rules = Mapping[str, Callable[..., Any]]


class Program:
    """The functions of a module, to be called on arrays.

    Args:
      exported: what a file holds; its bytes have been checked.
      rules: how each operation is done: ``rule(program, operation, values)``.
    """

    def __init__(self, exported: export.Exported, rules: Rules):
        self.exported, self.rules = exported, rules

    def __call__(self, *arguments: Any) -> list[Any]:
        """The flat results for flat arguments, as `exported.call` gives them."""
        exported = self.exported
        kept = [arguments[index] for index in exported.module_kept_var_idx]
        with mlir.make_ir_context():
            module = _jax.mlir.deserialize_portable_artifact(exported.mlir_module_serialized)
            self.functions = {str(ir.StringAttr(op.attributes["sym_name"]).value): op for op in module.body.operations}
            main = self.functions["main"]
            block = main.regions[0].blocks[0]
            if len(block.arguments) == len(kept) + 1:  # which platform it runs on, first
                kept = [np.int32(exported.platforms.index("cpu")), *kept]
            return [as_array(out) for out in self.run(block, kept, {})]

    def run(self, block: Any, values: Sequence[Any], outer: dict[Any, Any]) -> list[Any]:
        """Evaluate a block on values for its arguments; it sees what is outside."""
        env = {**outer, **dict(zip(block.arguments, values, strict=True))}
        for operation in block.operations:
            op = operation.operation
            given = [env[operand] for operand in op.operands]
            if op.name.endswith(".return"):
                return given
            rule = self.rules.get(op.name.split(".", 1)[1])
            if rule is None:
                raise ArtifactError(f"the program has the operation {op.name}, which is not known here")
            outs = rule(self, op, given, env)
            env.update(zip(op.results, outs if isinstance(outs, list) else [outs], strict=True))
        return []

    def region(self, region: Any, env: dict[Any, Any]) -> Callable[..., list[Any]]:
        """A region as a function of its arguments."""
        block = region.blocks[0]
        return lambda *values: [as_array(out) for out in self.run(block, values, env)]


def elements(attribute: Any) -> np.ndarray:
    """The elements of a constant."""
    dense = ir.DenseElementsAttr(attribute)
    shaped = ir.ShapedType(dense.type)
    dtype = dtype_of(shaped.element_type)
    shape = tuple(shaped.get_dim_size(axis) for axis in range(shaped.rank))
    if dtype == np.bool_ and not dense.is_splat:
        bits: Any = ir.DenseIntElementsAttr(attribute)
        return np.array([bool(bits[index]) for index in range(len(bits))]).reshape(shape)
    if dense.is_splat:
        value: Any = dense.get_splat_value()
        return np.full(shape, value.value).astype(dtype)
    return np.array(dense).astype(dtype).reshape(shape)


def dtype_of(element: Any) -> np.dtype:
    """The dtype of an element type."""
    text = str(element)
    short = {"i1": "bool", "bf16": "bfloat16", "f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2"}
    if text in short:
        return jnp.dtype(short[text])
    kind = {"f": "float", "i": "int", "ui": "uint", "si": "int"}[text.rstrip("0123456789")]
    return jnp.dtype(kind + text.lstrip("fuis"))


def shape_of(op: Any, index: int = 0) -> tuple[int, ...]:
    """The shape of a result, of which all is known."""
    return tuple(ir.RankedTensorType(op.results[index].type).shape)


def element_of(op: Any) -> np.dtype:
    """The dtype of the first result."""
    return dtype_of(ir.RankedTensorType(op.results[0].type).element_type)


def ints(attribute: Any) -> tuple[int, ...]:
    """A list of whole numbers."""
    return tuple(int(value) for value in ir.DenseI64ArrayAttr(attribute))


def matrix(attribute: Any) -> list[tuple[int, int]]:
    """Pairs of whole numbers: paddings."""
    return [(int(low), int(high)) for low, high in elements(attribute)]


def text(attribute: Any) -> str:
    """The word that an attribute is: ``#stablehlo<comparison_direction LT>``."""
    return str(attribute).rstrip(">").split()[-1]


def only_operation(region: Any) -> str:
    """The name of the one operation on scalars that a region does; "" if it does more."""
    names = [operation.operation.name.split(".", 1)[1] for operation in region.blocks[0].operations]
    return names[0] if len(names) == 2 else ""
