"""Integers of a file that stand for numbers, as packed leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lepton_jax.formats import Uniform
from lepton_jax.interchange.onnx.parts import Graph, Node
from lepton_jax.leaves.qarray import QArray

_BITS = {
    np.dtype(kind): (bits, signed)
    for kind, bits, signed in (
        (np.int8, 8, True), (np.uint8, 8, False), (ml_dtypes.int4, 4, True), (ml_dtypes.uint4, 4, False),
        (ml_dtypes.int2, 2, True), (ml_dtypes.uint2, 2, False),
    )
}  # fmt: skip
_SLOTS: Mapping[str, tuple[tuple[int, int | None, int | None, int | None], ...]] = {
    "ConvInteger": ((1, None, 3, 0),),
    "MatMulInteger": ((1, None, 3, -1),),
    "QLinearConv": ((3, 4, 5, 0),),
    "QLinearMatMul": ((3, 4, 5, -1),),
    "com.microsoft:DynamicQuantizeLSTM": ((1, 8, 9, None), (2, 10, 11, None)),
    "com.microsoft:DynamicQuantizeMatMul": ((1, 2, 3, -1),),
    "com.microsoft:MatMulIntegerToFloat": ((1, 3, 5, -1),),
}
"""Where an operator of integers has its weights, their scales and zero points, and along which axis these are; None: one a
direction, or one a direction and column."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodesOf:
    """Integers and what they stand for: ``(codes - zero) * scale``.

    Args:
      codes: in the file's layout, or after `permuted` in another.
      scale, zero: with as many axes as the codes, one or as many indices along each, or one a block of neighbours.
      block: how many neighbours share a scale along an axis, and the axis; None if there are no blocks.
      as_they_are: whether an operator takes the integers, and scales what it makes of them.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    block: tuple[int, int] | None = None
    as_they_are: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def permuted(self, order: tuple[int, ...]) -> CodesOf:
        """With its axes in another order."""
        codes, scale, zero = (part.transpose(order) for part in (self.codes, self.scale, self.zero))
        block = None if self.block is None else (self.block[0], order.index(self.block[1]))
        return dataclasses.replace(self, codes=codes, scale=scale, zero=zero, block=block)

    def made(self) -> Any:
        """The packed leaf."""
        bits, signed = _BITS[self.codes.dtype]
        own = tuple(axis for axis, n in enumerate(self.scale.shape) if n > 1)
        channel: Any = None if not own or self.block else own[0] if len(own) == 1 else own
        size, axis = self.block or (None, None)
        fmt = Uniform(
            bits,
            not self.zero.any() and signed,
            channel,
            size,
            group_axis=axis,
            scale_dtype=self.scale.dtype.name,
            signed=signed,
        )
        narrow = jnp.int8 if signed else jnp.uint8
        return QArray.from_qvalue(
            jnp.asarray(self.codes.astype(narrow)), jnp.asarray(self.scale), jnp.asarray(self.zero.astype(np.int32)), fmt,
            jnp.dtype(self.scale.dtype),
        )  # fmt: skip


def taken_as_codes(graph: Graph, read: Mapping[str, list[tuple[Node, int]]], found: dict[str, CodesOf]) -> Graph:
    """Return the graph without the nodes that only scale constant integers.

    Args:
      graph: whose `Constant` nodes become constants, too.
      read: where each value is read.
      found: gets what stands for numbers, by name; the names are `leaves` of the graph.
    """
    constants = dict(graph.constants)
    constants |= {node.outputs[0]: node.get("value") for node in graph.nodes if _is_tensor(node)}
    nodes, leaves = [], dict(graph.leaves)
    for node in graph.nodes:
        made: CodesOf | None = None
        if node.op in ("DequantizeLinear", "com.microsoft:DequantizeLinear"):
            given = [constants.get(one) for one in node.inputs if one]
            made = None if any(one is None for one in given) else _scaled(node, *given)
            if made is not None:
                found[node.outputs[0]], leaves[node.outputs[0]] = made, ""
        for slots in (one for one in _SLOTS.get(node.op, ()) if one[0] < len(node.inputs)):
            name = node.inputs[slots[0]]
            of_integers = _of_integers(node, slots, constants, read.get(name, [])) if name in constants else None
            if of_integers is not None:
                found[name], leaves[name] = dataclasses.replace(of_integers, as_they_are=True), ""
        if not _is_tensor(node) and made is None:
            nodes.append(node)
    kept = {name: value for name, value in constants.items() if name not in leaves}
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=kept, leaves=leaves)


def _is_tensor(node: Node) -> bool:
    return node.op == "Constant" and isinstance(node.get("value"), np.ndarray)


def _scaled(node: Node, codes: Any, scale: Any, zero: Any = None) -> CodesOf | None:
    if codes.dtype not in _BITS or codes.size < 2 or scale.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
        return None
    return _fitting(codes, scale, zero, node.get("axis", 1), node.get("block_size", 0))


def _fitting(codes: Any, scale: Any, zero: Any, axis: int, block: int = 0) -> CodesOf | None:
    """The integers with a scale and zero point of as many axes; None where they do not fit."""
    ndim = codes.ndim
    if scale.ndim == ndim and scale.ndim > 1 and scale.size > 1:
        axis %= ndim
        size = block or -(-codes.shape[axis] // scale.shape[axis])
        if any(n != m for i, (n, m) in enumerate(zip(codes.shape, scale.shape)) if i != axis):
            return None
        zero = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
        fits = scale.shape[axis] == -(-codes.shape[axis] // size) and zero.shape == scale.shape and size > 1
        return CodesOf(codes=codes, scale=scale, zero=zero, block=(size, axis)) if fits else None
    if scale.size == 1:
        shape: list[int] = [1] * ndim
    elif scale.ndim == 1 and -ndim <= axis < ndim and scale.size == codes.shape[axis % ndim]:
        shape = [-1 if i == axis % ndim else 1 for i in range(ndim)]
    else:
        return None
    scale = scale.reshape(shape)
    zero = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
    if zero.size not in (1, scale.size) or not np.isfinite(scale.astype(np.float32)).all() or not (scale > 0).all():
        return None
    return CodesOf(
        codes=codes, scale=scale, zero=np.broadcast_to(zero.reshape(shape if zero.size > 1 else [1] * ndim), scale.shape)
    )


def _of_integers(
    node: Node,
    slots: tuple[int, int | None, int | None, int | None],
    constants: Mapping[str, Any],
    places: list[tuple[Node, int]],
) -> CodesOf | None:
    """A weight of an operator of integers, if all that read it scale it alike."""
    weight, scale_at, zero_at, axis = slots
    codes = constants[node.inputs[weight]]
    if codes.dtype not in _BITS or codes.size < 2:
        return None
    key = [node.inputs[at] if at is not None and at < len(node.inputs) else "" for at in (scale_at, zero_at)]
    for other, place in places:
        if other.op != node.op or place != weight:
            return None
        if [other.inputs[at] if at is not None and at < len(other.inputs) else "" for at in (scale_at, zero_at)] != key:
            return None
    if any(name and name not in constants for name in key):
        return None
    scale = constants[key[0]] if key[0] else np.ones((), np.float32)
    zero = constants[key[1]] if key[1] else None
    if axis is None:
        columns = (codes.shape[0], 1, -1)
        scale = scale.reshape(columns).astype(np.float32)
        zero = np.zeros(scale.shape, np.int32) if zero is None else zero.reshape(columns).astype(np.int32)
        return CodesOf(codes=codes, scale=scale, zero=np.broadcast_to(zero, scale.shape))
    return _fitting(codes, scale.astype(np.float32), zero, axis)
