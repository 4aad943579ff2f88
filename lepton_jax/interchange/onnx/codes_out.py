"""Packed leaves as tensors and nodes of a file."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from lepton_jax.formats import Uniform, layout
from lepton_jax.interchange.onnx.weights import Record
from lepton_jax.leaves.qarray import QArray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """Integers, in the file's layout, and what they stand for: ``(codes - zero) * scale``.

    Args:
      codes: int8 or uint8.
      scale: with as many axes: of length 1, of the codes', or along `axis` one for each `block` neighbours.
      zero: likewise, or None.
      bits: that the codes need.
      block: neighbours along an axis, and the axis; None without blocks.
      dtype: of the numbers.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    bits: int
    block: tuple[int, int] | None
    dtype: np.dtype

    @property
    def _place(self) -> tuple[int | None, int] | None:
        """The axis that scales go along and how many codes share one, 0 without blocks; None if ONNX has no such scales."""
        if self.block is not None:
            return self.block[1], self.block[0]
        shape = self.codes.shape
        long = [axis for axis, n in enumerate(self.scale.shape) if n > 1]
        if len(long) <= 1:
            return (long[0] if long else None), 0
        short = [axis for axis, (n, m) in enumerate(zip(self.scale.shape, shape)) if n != m]
        return (short[0], shape[short[0]]) if len(short) == 1 else None

    @property
    def version(self) -> int:
        """The operator set that has all that is needed."""
        if self.bits <= 4 or (self._place or (0, 0))[1]:
            return 21
        return 10 if self.scale.size == 1 else 13

    def dense(self) -> np.ndarray:
        """The numbers."""
        scale, zero = self._wide(self.scale), 0 if self.zero is None else self._wide(self.zero.astype(np.float32))
        return ((self.codes.astype(np.float32) - zero) * scale).astype(self.dtype)

    def _wide(self, part: np.ndarray) -> np.ndarray:
        if self.block is None:
            return part
        size, axis = self.block
        return np.take(np.repeat(part, size, axis), np.arange(self.codes.shape[axis]), axis)

    def written(self, name: str, version: int) -> tuple[list[Any], list[Any]]:
        """Tensors and nodes that make a value of a name, in an operator set."""
        from onnx import helper

        narrow, place, parts = self._narrow(version), self._place, [f"{name}_quantized", f"{name}_scale"]
        after = [] if self.dtype == np.float32 else [helper.make_node("Cast", [f"{name}_wide"], [name], to=_number(self.dtype))]
        out = f"{name}_wide" if after else name
        if version < self.version or place is None:
            return self._multiplied(name, narrow, out, after)
        axis, size = place
        flat = self.scale.reshape(()) if axis is None else self.scale if size else self.scale.reshape(-1)
        tensors = [_tensor(narrow, parts[0]), _tensor(flat.astype(np.float32), parts[1])]
        if self.zero is not None:
            parts.append(f"{name}_zero_point")
            tensors.append(_tensor(self.zero.reshape(flat.shape).astype(narrow.dtype), parts[2]))
        given: dict[str, Any] = ({"axis": axis} if axis is not None else {}) | ({"block_size": size} if size else {})
        return tensors, [helper.make_node("DequantizeLinear", parts, [out], **given), *after]

    def _narrow(self, version: int) -> np.ndarray:
        if self.bits > 4 or version < 21:
            return self.codes
        return self.codes.astype(ml_dtypes.int4 if self.codes.dtype == np.int8 else ml_dtypes.uint4)

    def _multiplied(self, name: str, narrow: np.ndarray, out: str, after: list[Any]) -> tuple[list[Any], list[Any]]:
        """The same by operators that are older, and for any scales."""
        from onnx import helper

        tensors = [_tensor(narrow, f"{name}_quantized"), _tensor(self._wide(self.scale).astype(np.float32), f"{name}_scale")]
        nodes, last = [helper.make_node("Cast", [f"{name}_quantized"], [f"{name}_float"], to=1)], f"{name}_float"
        if self.zero is not None:
            tensors.append(_tensor(self._wide(self.zero).astype(np.float32), f"{name}_zero_point"))
            nodes.append(helper.make_node("Sub", [last, f"{name}_zero_point"], [f"{name}_centred"]))
            last = f"{name}_centred"
        return tensors, [*nodes, helper.make_node("Mul", [last, f"{name}_scale"], [out]), *after]


def codes_of(record: Record, leaf: QArray) -> Codes | None:
    """A packed leaf in the file's layout; None if its format is not of evenly spaced levels in eight bits or less."""
    fmt = leaf.format
    if not isinstance(fmt, Uniform) or fmt.bits > 8:
        return None
    codes, scale = np.asarray(leaf.qvalue), np.asarray(leaf.scale, np.float32)
    zero = np.broadcast_to(np.asarray(leaf.zero_point), scale.shape)
    block = None
    if fmt.group_size is not None:
        axis = layout.grouped_axis(leaf.shape, fmt)
        block = (min(fmt.group_size, leaf.shape[axis]), axis if record.order is None else record.order[axis])
    return Codes(
        codes=record.as_in_file(codes),
        scale=record.as_in_file(scale),
        zero=record.as_in_file(zero) if zero.any() else None,
        bits=fmt.bits,
        block=block,
        dtype=np.dtype(leaf.output_dtype),
    )


def _number(dtype: np.dtype) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(dtype)


def _tensor(array: np.ndarray, name: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
