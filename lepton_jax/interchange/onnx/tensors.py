"""Tensors of a file as arrays: every length, type and byte checked before anything is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.files import open_file
from lepton_jax.core.foreign_text import shown
from lepton_jax.interchange.onnx.element_types import NARROW, dtype_of

_MOST_AXES = 32
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "float_data": ("float32", "complex64"),
    "int32_data": (
        "int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz",
        "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "int4", "uint4", "float4_e2m1fn", "int2", "uint2",
    ),
    "int64_data": ("int64",),
    "double_data": ("float64", "complex128"),
    "uint64_data": ("uint32", "uint64"),
}  # fmt: skip
"""Where the elements of a type are, if they are not plain bytes."""


class Folder:
    """Files beside the model's, of which tensors may be.

    Args:
      path: of the model's file.

    Attributes:
      stored: bytes that were read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = os.path.realpath(os.path.dirname(os.path.abspath(os.fspath(path))))
        self.stored = 0

    def bytes_of(self, entries: Mapping[str, str]) -> bytes:
        """Read what external data says.

        Raises:
          ArtifactError: for a place outside the folder, or bytes that the file has not.
        """
        place = entries.get("location", "")
        full = os.path.realpath(os.path.join(self.root, place))
        if not place or os.path.isabs(place) or ".." in place.replace("\\", "/").split("/") or "\0" in place:
            raise ArtifactError(f"its data are at {shown(place)!r}, which is no file beside the model's; nothing else is read")
        if os.path.commonpath([self.root, full]) != self.root:
            raise ArtifactError(f"its data are at {shown(place)!r}, which leads out of the model's folder; copy the file there")
        try:
            begin, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise ArtifactError("its external data have an offset or a length that is no number") from None
        try:
            with open_file(full) as file:
                size = os.fstat(file.fileno()).st_size
                length = size - begin if length < 0 else length
                if begin < 0 or length < 0 or begin + length > size:
                    raise ArtifactError(f"its data are bytes {begin} to {begin + length} of {shown(place)}, which has {size}")
                file.seek(begin)
                self.stored += length
                return file.read(length)
        except OSError as error:
            raise ArtifactError(f"its data are in {shown(place)}, which cannot be read: {error.strerror}") from error


def array_of(tensor: Any, folder: Folder) -> np.ndarray:
    """Return a tensor's elements.

    Args:
      tensor: a `TensorProto`.
      folder: of the model's file.

    Raises:
      ArtifactError: for lengths, a type or bytes that do not fit one another; names the tensor.
    """
    where = f"the tensor {shown(tensor.name)!r}"
    try:
        dtype = dtype_of(tensor.data_type)
        shape = tuple(tensor.dims)
        if any(n < 0 for n in shape) or len(shape) > _MOST_AXES:
            raise ArtifactError(f"has the lengths {shown(list(shape))}; they are 0 or more, of {_MOST_AXES} axes at most")
        return _filled(tensor, dtype, shape, folder)
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from error


def _filled(tensor: Any, dtype: np.dtype, shape: tuple[int, ...], folder: Folder) -> np.ndarray:
    count, bits = math.prod(shape), NARROW.get(dtype, 8 * dtype.itemsize)
    if tensor.HasField("segment"):
        raise ArtifactError("is one of several segments, which are not read")
    external = tensor.data_location == 1
    if external or tensor.HasField("raw_data"):
        if external:  # kept in the tensor, so that the file may be written elsewhere
            tensor.raw_data = folder.bytes_of({e.key: e.value for e in tensor.external_data})
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        data = tensor.raw_data
        if len(data) != -(-count * bits // 8):
            raise ArtifactError(f"{dtype} of shape {shape} takes {-(-count * bits // 8)} bytes; the file has {len(data)}")
        if dtype == np.bool_ and data.strip(b"\0\1"):
            raise ArtifactError("a flag is neither 0 nor 1")
        plain = np.frombuffer(data, np.uint8 if bits < 8 else dtype.newbyteorder("<"))
        return _opened(plain, dtype, count, bits).reshape(shape)
    field = next(name for name, kinds in _FIELDS.items() if dtype.name in kinds)
    numbers = np.asarray(getattr(tensor, field))
    wanted = -(-count * bits // 8) if bits < 8 else count * (2 if dtype.kind == "c" else 1)
    if len(numbers) != wanted:
        raise ArtifactError(f"{dtype} of shape {shape} takes {wanted} numbers; the file has {len(numbers)}")
    if bits < 8:
        return _opened(numbers.astype(np.uint8), dtype, count, bits).reshape(shape)
    if field == "int32_data" and dtype.name not in ("int32", "int16", "int8", "uint16", "uint8", "bool"):
        width = np.uint16 if dtype.itemsize == 2 else np.uint8
        return numbers.astype(width).view(dtype).reshape(shape)
    if dtype.kind == "c":
        pairs = numbers.reshape(-1, 2)
        return (pairs[:, 0] + 1j * pairs[:, 1]).astype(dtype).reshape(shape)
    return numbers.astype(dtype).reshape(shape)


def _opened(data: np.ndarray, dtype: np.dtype, count: int, bits: int) -> np.ndarray:
    """Elements of a byte or more as they are; of fewer bits, the first of a byte in its low end."""
    if bits >= 8:
        return data.astype(dtype, copy=False)
    per = 8 // bits
    parts = np.stack([(data >> (bits * i)) & (2**bits - 1) for i in range(per)], -1).reshape(-1)[:count].astype(np.uint8)
    if dtype.name.startswith("int"):
        signed = parts.astype(np.int8)
        return np.where(signed >= 2 ** (bits - 1), signed - 2**bits, signed).astype(dtype)
    return parts.astype(dtype) if dtype.name.startswith("uint") else parts.view(dtype)
