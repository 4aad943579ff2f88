"""Packed leaves in the file: codes and scales as they are, factors as the operations that they run by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter
from lepton_jax.deploy.to_onnx.file import MICROSOFT
from lepton_jax.deploy.to_onnx.tensors import Tensor
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.codebook import Looked
from lepton_jax.leaves.form import Native
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.native import operations

_CODES = (Quantized, Looked)


def run(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    """The results of an operation on packed leaves, written as the operations by which they run; None if they have no way.

    Args:
      to: the exporter.
      eqn: the operation.
      values: its operands.
    """
    if not any(isinstance(value, Tensor) for value in values) and not _has_codes_only(values):
        outs = operations.run(eqn, values)
        return None if outs is None else [one if isinstance(one, Native) else np.asarray(one) for one in outs]
    if all(isinstance(value, _CODES) for value in values if isinstance(value, Native)):
        if any(isinstance(value, Tensor) for value in values):
            return None
        return _moved(eqn, values)
    leaves, tree = jax.tree.flatten(list(values), is_leaf=lambda one: isinstance(one, (Tensor, *_CODES)))
    found: list[Any] = []

    def traced(*arrays: Any) -> Any:
        outs = operations.run(eqn, jax.tree.unflatten(tree, arrays))
        found.append(outs)
        return outs

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    closed, made = jax.make_jaxpr(traced, return_shape=True)(*shapes)
    if found[0] is None:
        return None
    outs = to.evaluate(_compat.open_jaxpr(closed), _compat.consts_of(closed), leaves, eqn.path, eqn.scope)
    return jax.tree.unflatten(jax.tree.structure(made), outs)


def _has_codes_only(values: Sequence[Any]) -> bool:
    return all(isinstance(value, _CODES) for value in values if isinstance(value, Native))


def _moved(eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    outs = operations.run(eqn, values)
    return None if outs is None else [one if isinstance(one, Native) else np.asarray(one) for one in outs]


def opened(to: Exporter, value: Native) -> Any:
    """The dense array of a packed leaf, made of its codes where the file begins."""
    value = value.opened() if not isinstance(value, _CODES) else value
    if isinstance(value, Looked):
        return _looked_up(to, value)
    if isinstance(value, Quantized) and isinstance(value.seen, tuple):
        if value.is_linear:
            return _scaled(to, value)
        if (table := _levels(value)) is not None:
            return _scaled(to, value, table)
    return np.asarray(value.dense()) if isinstance(value, Native) else np.asarray(value)


def _levels(value: Quantized) -> np.ndarray | None:
    """What the codes of a format stand for before they are scaled; None if they are no places in a table of 16."""
    codes, scale = np.asarray(value.qvalue), np.asarray(value.expanded(value.scale), np.float32)
    if codes.dtype != np.uint8 or codes.max(initial=0) > 15 or not isinstance(value.zero_point, tuple):
        return None
    one, none = jnp.ones(16, jnp.float32), jnp.zeros(16, jnp.int32)
    table = np.asarray(value.format.from_codes(jnp.arange(16, dtype=jnp.uint8), one, none), np.float32)
    return table if np.array_equal(table[codes] * scale, np.asarray(value.dense(), np.float32)) else None


def codes_of(value: Quantized) -> np.ndarray:
    """The codes in the narrowest type that the file has for them."""
    codes = np.asarray(value.qvalue)
    if value.is_float8 or value.format.bits > 4:  # type: ignore[attr-defined]
        return codes
    return codes.astype(ml_dtypes.uint4 if codes.dtype == np.uint8 else ml_dtypes.int4)


def _looked_up(to: Exporter, value: Looked) -> Tensor:
    table, codes = np.asarray(value.table.astype(value.dtype)), np.asarray(value.codes)
    codes = np.minimum(codes, len(table) - 1)
    with to.file.outside():
        narrow = to.file.const(codes.astype(ml_dtypes.uint4 if len(table) <= 16 else codes.dtype))
        key = ("looked", narrow, table.tobytes())
        name = to.file.once(key, lambda: to.file.op("Gather", to.file.const(table), to.file.cast(narrow, np.int32), axis=0))
    return Tensor(name, value.shape, table.dtype)


def _scaled(to: Exporter, value: Quantized, table: np.ndarray | None = None) -> Tensor:
    """Codes, or what a table has for them, times scales: sessions compute it once, when they are made."""
    codes, scale = codes_of(value), np.asarray(value.scale, np.float32)
    zero = None if isinstance(value.zero_point, tuple) else np.asarray(value.zero_point)
    shape, group = value.shape, value.group

    def write() -> str:
        if table is None:
            name = to.file.cast(to.file.const(codes), np.float32)
        else:
            name = to.file.op("Gather", to.file.const(table), to.file.cast(to.file.const(codes), np.int32), axis=0)
        if zero is not None and np.any(zero):
            part = zero.astype(np.int16 if np.abs(zero).max() > 127 else np.int8)
            name = to.file.op("Sub", name, _repeated(to, part, shape, group))
        name = to.file.op("Mul", name, _repeated(to, scale, shape, group))
        return name if value.dtype == "float32" else to.file.cast(name, value.dtype)

    with to.file.outside():
        parts = (codes, scale, table, zero)
        key = tuple((part.shape, part.tobytes()) for part in parts if part is not None)
        name = to.file.once(("scaled", *key, value.dtype), write)
    return Tensor(name, shape, np.dtype(value.dtype))


def _repeated(to: Exporter, part: np.ndarray, shape: Sequence[int], group: int) -> str:
    """A scale or zero point as float32, one for each group of neighbours repeated."""
    name = to.file.cast(to.file.const(part), np.float32)
    for axis, (size, length) in enumerate(zip(part.shape, shape)):
        if size not in (1, length):
            index = np.arange(length) // group
            name = to.file.op("Gather", name, to.file.const(index.astype(np.int32)), axis=axis)
    return name


def dot(to: Exporter, eqn: Equation, values: Sequence[Any], free: Sequence[Sequence[int]]) -> list[Any] | None:
    """A product with a weight of codes in groups along the summed axis, done on the codes; None if it is another.

    Args:
      to: the exporter.
      eqn: the product.
      values: its operands, the second a weight.
      free: their axes that are not summed.
    """
    x, weight = values
    (summed, _), _ = eqn.params["dimension_numbers"]
    [axis, *more] = eqn.params["dimension_numbers"][0][1]
    if more or len(weight.shape) != 2 or not isinstance(x, Tensor) or np.dtype(eqn.out_avals[0].dtype) != np.float32:
        return _dense(to, eqn, values)
    matrix = weight.mapped(lambda part: jnp.swapaxes(part, 0, 1)) if axis == 0 else weight  # (outputs, inputs)
    rows, length = matrix.shape
    group = matrix.group
    fits = matrix.is_linear and not matrix.is_float8 and group >= 16 and group & (group - 1) == 0
    fits = fits and matrix.scale.shape == (rows, -(-length // group)) and x.dtype == np.float32
    if not fits or matrix.format.bits != 4:  # type: ignore[attr-defined]
        return _dense(to, eqn, values)
    from lepton_jax.deploy.to_onnx.rules.products import arranged

    name = arranged(to, x, [*free[0], *summed], np.float32)
    codes, scale, zero = _blocks(matrix)
    given = [to.file.const(codes), to.file.const(scale.reshape(-1))]
    given += [] if zero is None else [to.file.const(zero.reshape(-1))]
    # 1: products of floats; 4, which ONNX Runtime takes if nothing is said: activations are rounded to eight bits.
    bits = matrix.format.bits  # type: ignore[attr-defined]
    level = 4 if to.rounds_activations else 1
    attributes = {"K": length, "N": rows, "bits": bits, "block_size": group, "accuracy_level": level}
    out = to.file.op("MatMulNBits", name, *given, domain=MICROSOFT, **attributes)
    return [to.result(eqn, out)]


def _dense(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    return to.rules["dot_general"](to, eqn, [to.opened(v) if isinstance(v, Native) else v for v in values])


def _blocks(matrix: Quantized) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes of (outputs, inputs) as `MatMulNBits` has them: unsigned, in blocks, two of four bits a byte."""
    bits, group = matrix.format.bits, matrix.group  # type: ignore[attr-defined]
    rows, length = matrix.shape
    blocks = -(-length // group)
    middle = 2 ** (bits - 1)
    codes = np.asarray(matrix.qvalue).astype(np.int32)
    signed = np.asarray(matrix.qvalue).dtype == np.int8
    codes = codes + middle if signed else codes
    zero = np.zeros((rows, blocks), np.int32) if isinstance(matrix.zero_point, tuple) else np.asarray(matrix.zero_point)
    zero = np.broadcast_to(zero, (rows, blocks)) + (middle if signed else 0)
    filled = np.repeat(zero, group, 1)
    filled[:, :length] = codes
    packed: np.ndarray = filled.reshape(rows, blocks, group).astype(np.uint8)
    if bits == 4:
        packed = packed[..., ::2] | packed[..., 1::2] << 4
    scale = np.asarray(matrix.scale, np.float32)
    if (zero == middle).all():
        return packed, scale, None
    points: np.ndarray = zero.astype(np.uint8)
    if bits == 4:
        points = np.pad(points, ((0, 0), (0, blocks % 2)))
        points = points[:, ::2] | points[:, 1::2] << 4
    return packed, scale, points
