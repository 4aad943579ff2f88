"""Numbers bit for bit: predicted from their neighbours, then entropy-coded or Lempel-Ziv-coded, whichever is smaller."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
import zstandard

from lepton_jax.coding import symbols
from lepton_jax.coding.arrays import patterns
from lepton_jax.coding.compression import compress, decompress
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError
from lepton_jax.data.compressed import filters

LAYOUTS = ("lempel-ziv", "planes")
_LEMPEL_ZIV, _PLANES = range(2)
_GREEN = 0x80
_PROBE_LEVEL, _LEVEL = 3, 19
# As the container numbers its codecs.
_RAW, _ZSTD = 0, 2
_CODECS = ("raw", "deflate", "zstd", "xz")


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lossless:
    """Keep every bit.

    Each block of each array is predicted by the best of some filters (differences along an axis, a plane, the median edge
    detector, the example before), then coded by the smallest of what is tried.

    Args:
      favour: "size" tries Huffman's code, asymmetric numeral systems and all general compressors; "speed" keeps to zstd, which
        decodes some ten to a hundred times faster.

    Raises:
      ValueError: for another word.

    Example:
      >>> Lossless(favour="beauty")
      Traceback (most recent call last):
      ...
      ValueError: Lossless: favour must be 'size' or 'speed'; got 'beauty'.
    """

    favour: Literal["size", "speed"] = "size"

    def __post_init__(self) -> None:
        if self.favour not in ("size", "speed"):
            raise ValueError(f"Lossless: favour must be 'size' or 'speed'; got {self.favour!r}.")


class Coded(NamedTuple):
    """One block's stream, and the names of what was chosen for it."""

    data: bytes
    chosen: str


def encode(block: np.ndarray, codec: Lossless) -> Coded:
    """Code a block.

    Args:
      block: any dtype of plain numbers, examples along the first axis.
      codec: what to try.
    """
    if not block.size:
        return Coded(b"", "empty")
    bits = patterns(block)
    bits = bits.reshape(_seen(block.shape, bits.size // block.size))
    best = min(_filtered(bits, _is_float(block.dtype)), key=lambda one: _order_0(one[1]))
    plain = (filters.NONE, bits)
    tried = [best] if best[0] == filters.NONE else [best, plain]
    if codec.favour == "speed":
        streams = [_lempel_ziv(number, rest, fast=True) for number, rest in tried]
    else:
        probe = zstandard.ZstdCompressor(_PROBE_LEVEL)
        repetitive = min(tried, key=lambda one: len(probe.compress(one[1].tobytes())))
        streams = [_lempel_ziv(*repetitive, fast=False), *(_planes(number, rest) for number, rest in tried)]
    return min(streams, key=lambda one: len(one.data))


def encode_plainly(block: np.ndarray) -> Coded:
    """Code a block by what is always quick to decode, without prediction."""
    bits = patterns(block)
    return _lempel_ziv(filters.NONE, bits, fast=True) if block.size else Coded(b"", "empty")


def decode(reader: Reader, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Read a block that `encode` wrote.

    Raises:
      ArtifactError: if the stream does not hold it.
    """
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, dtype)
    kind = np.dtype(f"<u{min(dtype.itemsize, 8)}")
    parts = dtype.itemsize // kind.itemsize
    seen = _seen(shape, parts)
    number = reader.take(1)[0]
    green, number = number & _GREEN, number & ~_GREEN
    if number >= len(filters.FILTERS) or (green and seen[3] != 3):
        raise ArtifactError(f"unknown filter {number} at offset {reader.offset - 1}; a newer version may read it")
    reader.work(filters.work(number, seen), f"the filter {filters.FILTERS[number]}")
    layout = reader.coder(LAYOUTS, "values")
    if layout == _LEMPEL_ZIV:
        codec = reader.take(1)[0]
        rest = np.frombuffer(decompress(codec, reader.block("values"), count * dtype.itemsize), kind)
    else:
        planes = [symbols.decode(reader, count * parts, 256) for _ in range(kind.itemsize)]
        rest = np.stack(planes, -1).reshape(-1).view(kind)
    x = filters.undo(number, rest.reshape(seen))
    x = filters.add_green(x) if green else x
    if number != filters.NONE and _is_float(dtype):
        x = _from_ordered(x)
    return np.ascontiguousarray(x).view(np.uint8).reshape(-1).view(dtype).reshape(shape)


def _seen(shape: tuple[int, ...], parts: int) -> tuple[int, int, int, int]:
    """The shape that filters see; numbers of more than eight bytes are several."""
    return filters.as_block((*shape[:-1], shape[-1] * parts))


def _is_float(dtype: np.dtype) -> bool:
    """Whether the highest bit is a sign beside a magnitude; `ml_dtypes` say so by their kind."""
    return dtype.kind in "fcV"


def _filtered(bits: np.ndarray, floating: bool) -> list[tuple[int, np.ndarray]]:
    """What each filter leaves; of floats, their order is taken for the numbers."""
    ordered = _to_ordered(bits) if floating else bits
    out = [(number, filters.apply(number, ordered)) for number in filters.candidates(bits.shape) if number != filters.NONE]
    if bits.shape[3] == 3 and not floating:
        green = filters.subtract_green(bits)
        out += [(number | _GREEN, filters.apply(number, green)) for number in filters.candidates(bits.shape)]
    return [(filters.NONE, bits), *out]


def _order_0(rest: np.ndarray) -> float:
    """Bits of all planes without contexts."""
    planes = rest.reshape(-1).view(np.uint8).reshape(-1, rest.itemsize).T
    return sum(rest.size * symbols.entropy(np.bincount(plane, minlength=256)) for plane in planes)


def _planes(number: int, rest: np.ndarray) -> Coded:
    writer = Writer()
    writer.put(bytes([number, _PLANES]))
    names = []
    for plane in np.ascontiguousarray(rest).reshape(-1).view(np.uint8).reshape(-1, rest.itemsize).T:
        stream = symbols.encode(np.ascontiguousarray(plane), 256).data
        names.append(symbols.CODERS[stream[0]])
        writer.put(stream)
    return Coded(bytes(writer.data), f"{_name(number)}, {'+'.join(sorted(set(names)))}")


def _lempel_ziv(number: int, rest: np.ndarray, *, fast: bool) -> Coded:
    data = np.ascontiguousarray(rest).tobytes()
    writer = Writer()
    codec, stored = _zstd(data) if fast else compress(data)
    writer.put(bytes([number, _LEMPEL_ZIV, codec]))
    writer.block(stored)
    return Coded(bytes(writer.data), f"{_name(number)}, {_CODECS[codec]}")


def _zstd(data: bytes) -> tuple[int, bytes]:
    stored = zstandard.ZstdCompressor(_LEVEL, write_checksum=False, write_content_size=False).compress(data)
    return (_ZSTD, stored) if len(stored) < len(data) else (_RAW, data)


def _name(number: int) -> str:
    return filters.FILTERS[number & ~_GREEN] + (" less green" if number & _GREEN else "")


def _to_ordered(bits: np.ndarray) -> np.ndarray:
    """Map patterns of floats to integers of the same order: close floats become close integers."""
    top = bits.dtype.type(1) << bits.dtype.type(8 * bits.itemsize - 1)
    return np.where(bits & top, ~bits, bits | top)


def _from_ordered(x: np.ndarray) -> np.ndarray:
    """Undo `_to_ordered`."""
    top = x.dtype.type(1) << x.dtype.type(8 * x.itemsize - 1)
    return np.where(x & top, x ^ top, ~x)
