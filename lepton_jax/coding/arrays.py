"""Arrays of numbers, bit for bit: as they are, narrowed where that is exact, as a palette, in planes of bytes, or sparse.

All work is on bit patterns (unsigned integers), so NaN payloads and -0.0 come back as they were.
"""

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from lepton_jax.coding import sparse_index, tensor_codes
from lepton_jax.coding.compression import compress, decompress
from lepton_jax.coding.sparse_index import Hints, find_lag, matrix_shape
from lepton_jax.coding.streams import Reader, Writer, varint
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_text import shown

CODERS = ("raw", "compressed", "palette", "planes", "float16", "bfloat16", "sparse", "empty", "delta")
_RAW, _COMPRESSED, _PALETTE, _PLANES, _FLOAT16, _BFLOAT16, _SPARSE, _EMPTY, _DELTA = range(9)
_PALETTE_LIMIT = 256
_NUMPY = {"bool", "complex64", "complex128", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
# Those that jax can hold; others (int1, float6_e2m3fn) it refuses, or has no arrays of.
_ML_DTYPES = {
    "bfloat16", "int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
}  # fmt: skip
# Sorted tables and slowly changing scales are short; longer arrays are no such.
_DELTA_LIMIT = 1 << 14


def patterns(array: np.ndarray) -> np.ndarray:
    """The elements' bits as little-endian unsigned integers, flat; elements over 8 bytes as several."""
    size = min(array.dtype.itemsize, 8)
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).view(f"<u{size}") if flat.size else np.zeros(0, f"<u{size}")


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype of a name, those of `ml_dtypes` included.

    Raises:
      ArtifactError: if there is none that plain numbers can have.
    """
    if name in _NUMPY:
        return np.dtype(name)
    # Only known names: numpy would read many other texts as dtypes, some with a warning.
    if name in _ML_DTYPES:
        return np.dtype(getattr(ml_dtypes, name))
    raise ArtifactError(f"dtype {shown(name, 40)!r} is not one of plain numbers that jax has arrays of")


def encode(bits: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], hints: Hints, sparse: bool = True) -> Writer:
    """Code numbers losslessly.

    Args:
      bits: their patterns, flat.
      dtype: what they are.
      shape: the tensor's.
      hints: what earlier tensors tell.
      sparse: whether zeros may be coded apart.

    Returns:
      The shortest stream found.
    """
    if not bits.size:
        return Writer(_EMPTY)
    candidates = [Writer(_RAW, bits.tobytes())]
    if bits.nbytes > 64:
        codec, stored = compress(bits.tobytes())
        candidates.append(Writer(_COMPRESSED, bytes([codec])))
        candidates[-1].block(stored)
    distinct, index = np.unique(bits, return_inverse=True)
    if len(distinct) <= min(_PALETTE_LIMIT, bits.size):
        candidates.append(Writer(_PALETTE, varint(len(distinct)), distinct.tobytes()))
        candidates[-1].put(tensor_codes.encode(index, len(distinct), shape, hints).data)
    elif bits.itemsize == 1 or bits.size > 256:
        candidates.append(Writer(_PLANES, *_coded_planes(bits, shape, hints)))
    if dtype == np.float32:
        candidates += [
            Writer(coder, encode(half, np.dtype(narrow), shape, hints).data) for coder, half, narrow in _narrowed(bits)
        ]
    if 8 < bits.size <= _DELTA_LIMIT and bits.itemsize > 1:
        candidates.append(Writer(_DELTA, *_coded_planes(_differences(bits), shape, hints)))
    zeros = int((bits == 0).sum())
    if sparse and zeros:
        kept = (bits != 0).reshape(matrix_shape(shape))
        lag = find_lag(kept)
        rest = encode(bits[kept.reshape(-1)], dtype, (len(bits) - zeros,), hints, sparse=False)
        candidates.append(Writer(_SPARSE, varint(lag), sparse_index.encode(kept, lag, hints).data, rest.data))
    return min(candidates, key=len)


def decode(
    reader: Reader, dtype: np.dtype, shape: tuple[int, ...], hints: Hints, category: str, sparse: bool = True
) -> np.ndarray:
    """Read the patterns that `encode` wrote, flat.

    Raises:
      ArtifactError: if the stream does not hold them.
    """
    kind, count = np.dtype(f"<u{min(dtype.itemsize, 8)}"), math.prod(shape)
    coder = reader.coder(CODERS, category)
    if coder == _EMPTY and not count:
        return np.zeros(0, kind)
    if coder == _RAW:
        return np.frombuffer(reader.take(count * kind.itemsize, category), kind)
    if coder == _COMPRESSED:
        codec = reader.take(1)[0]
        return np.frombuffer(decompress(codec, reader.block(category), count * kind.itemsize), kind)
    if coder == _PALETTE:
        size = reader.number()
        if not 1 <= size <= _PALETTE_LIMIT:
            raise ArtifactError(f"a palette of {size} numbers at offset {reader.offset}; 1 to {_PALETTE_LIMIT} are allowed")
        distinct = np.frombuffer(reader.take(size * kind.itemsize, "codebook"), kind)
        return distinct[tensor_codes.decode(reader, size, shape, hints, category)]
    if coder == _PLANES:
        return _read_planes(reader, kind, shape, hints, category)
    if coder == _DELTA:
        return _sums(_read_planes(reader, kind, shape, hints, category))
    if coder in (_FLOAT16, _BFLOAT16) and dtype == np.float32:
        narrow = np.dtype(np.float16 if coder == _FLOAT16 else ml_dtypes.bfloat16)
        bits = decode(reader, narrow, shape, hints, category, sparse)
        with np.errstate(all="ignore"):
            return bits.view(narrow).astype(np.float32).view(np.uint32)
    if coder == _SPARSE and sparse:
        lag = reader.number()
        kept = sparse_index.decode(reader, matrix_shape(shape), lag, hints).reshape(-1)
        bits = np.zeros(count, kind)
        bits[kept] = decode(reader, dtype, (int(kept.sum()),), hints, category, sparse=False)
        return bits
    raise ArtifactError(f"coder {CODERS[coder]} cannot hold {count} numbers of {dtype}, near offset {reader.offset}")


def _coded_planes(bits: np.ndarray, shape: tuple[int, ...], hints: Hints) -> Iterator[bytearray]:
    """The streams of the numbers' first bytes, second bytes, ..."""
    for plane in bits.view(np.uint8).reshape(-1, bits.itemsize).T:
        yield tensor_codes.encode(plane, 256, shape, hints, holes=False).data


def _read_planes(reader: Reader, kind: np.dtype, shape: tuple[int, ...], hints: Hints, category: str) -> np.ndarray:
    out = np.empty((math.prod(shape), kind.itemsize), np.uint8)
    for plane in out.T:
        plane[...] = tensor_codes.decode(reader, 256, shape, hints, category)
    return out.reshape(-1).view(kind)


def _differences(bits: np.ndarray) -> np.ndarray:
    """Differences of the patterns, each less the one before; small ones of either sign in the low bits (0, -1, 1, -2, ...)."""
    steps = np.diff(bits, prepend=bits.dtype.type(0))
    sign = (steps >> bits.dtype.type(8 * bits.itemsize - 1)).astype(bits.dtype)
    return (steps << bits.dtype.type(1)) ^ (bits.dtype.type(0) - sign)


def _sums(coded: np.ndarray) -> np.ndarray:
    """Undo `_differences`."""
    one = coded.dtype.type(1)
    return np.cumsum((coded >> one) ^ (coded.dtype.type(0) - (coded & one)), dtype=coded.dtype)


def _narrowed(bits: np.ndarray) -> Iterator[tuple[int, np.ndarray, Any]]:
    """(coder, patterns, dtype) of the 16-bit floats that are exactly the 32-bit ones; float16 of finite numbers only."""
    if not (bits & 0xFFFF).any():
        yield _BFLOAT16, (bits >> np.uint32(16)).astype("<u2"), ml_dtypes.bfloat16
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        half = values.astype(np.float16)
    if np.isfinite(values).all() and (half.astype(np.float32).view(np.uint32) == bits).all():
        yield _FLOAT16, half.view("<u2"), np.float16
