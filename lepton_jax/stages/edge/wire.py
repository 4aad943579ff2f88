"""Values that cross from the edge to the cloud: quantized per channel, entropy-coded with static tables."""

from __future__ import annotations

import base64
import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.coding import rans
from lepton_jax.coding.arrays import dtype_of
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError, check_whole

_ALPHABET = 8
"""Neighbours are coded together, as symbols of so many bits at most."""
_MOST_EXAMPLES = 1 << 16


@checked
@dataclasses.dataclass(frozen=True)
class Wire:
    """How values cross: in so many bits each, before they are entropy-coded.

    Args:
      bits: 2 to 8.
      clip: the share of a channel's values, on the calibration examples, that the levels cover; the largest are clipped.

    Example:
      >>> Wire(bits=3).levels
      8
    """

    bits: int = 4
    clip: float = 0.9995

    def __post_init__(self) -> None:
        check_whole("Wire: bits", self.bits, 2, 8)
        if not 0.5 < self.clip <= 1:
            raise ValueError(f"Wire: clip must be in (0.5, 1], the share of values that levels cover; got {self.clip}.")

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return 2**self.bits


@checked
@dataclasses.dataclass(frozen=True, eq=False)
class Coder:
    """Codes one value, an array of examples along its first axis, by levels and tables that calibration found.

    With levels ``low + step q`` a channel, q from 0 to 2^bits - 1, and symbols of several neighbouring q, coded by the rANS of
    `lepton_jax.coding` with a table of frequencies a channel, which both sides have: nothing but codes goes over the wire.
    Values that are not floating go as they are.

    Attributes:
      shape: of one example; the last axis is the channels'.
      dtype: of the values.
      bits: of a level.
      low, step: float32 ``[C]``.
      table: frequencies ``[C, 2^(bits neighbours)]``, rows summing to 2^16.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype(np.float32)
      >>> coder = fit(x, Wire(bits=4))
      >>> data = coder.encode(x)
      >>> len(data) < x.nbytes / 6, float(np.abs(coder.decode(data) - x).max()) < 1
      (True, True)
    """

    shape: tuple[int, ...]
    dtype: str
    bits: int
    low: np.ndarray
    step: np.ndarray
    table: np.ndarray

    @property
    def group(self) -> int:
        """How many neighbouring levels make a symbol."""
        return (self.table.shape[-1].bit_length() - 1) // max(self.bits, 1)

    def codes(self, values: Any) -> np.ndarray:
        """Return the level of every value, uint8; NaN is at the lowest."""
        x = np.asarray(values).astype(np.float32)
        return np.clip(np.nan_to_num(np.round((x - self.low) / self.step), nan=0.0), 0, 2**self.bits - 1).astype(np.uint8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Undo `codes`, up to rounding."""
        return (codes.astype(np.float32) * self.step + self.low).astype(dtype_of(self.dtype))

    def encode(self, values: Any) -> bytes:
        """Return the bytes of some examples.

        Raises:
          ValueError: for values of another shape.
        """
        array = np.asarray(values)
        if array.shape[1:] != self.shape:
            raise ValueError(f"Coder: examples must have shape {list(self.shape)}; got {list(array.shape[1:])}.")
        writer = Writer()
        writer.number(len(array))
        if not self.bits:
            writer.put(np.ascontiguousarray(array.astype(dtype_of(self.dtype))).tobytes())
        else:
            symbols, channels = together(self.codes(array), self.bits, self.group)
            rans.encode(writer, symbols, self.table, channels)
        return bytes(writer.data)

    def decode(self, data: bytes) -> np.ndarray:
        """Return the examples.

        Raises:
          ArtifactError: for bytes that this coder did not write.
        """
        reader = Reader(data)
        count = reader.number()
        if count > _MOST_EXAMPLES:
            raise ArtifactError(f"{count} examples are declared; {_MOST_EXAMPLES} are allowed")
        shape = (count, *self.shape)
        if not self.bits:
            dtype = dtype_of(self.dtype)
            return np.frombuffer(reader.take(dtype.itemsize * math.prod(shape)), dtype).reshape(shape)
        group, channels = self.group, len(self.low)
        each = -(-math.prod(shape) // channels // group) if math.prod(shape) else 0
        rows = np.repeat(np.arange(channels), each)
        symbols = rans.decode(reader, each * channels, self.table, "values", rows)
        return self.values(_apart(symbols, shape, self.bits, group))

    def described(self) -> dict[str, Any]:
        """Return the coder as JSON has it."""
        parts = {name: getattr(self, name).tobytes() for name in ("low", "step")} | {
            "table": self.table.astype("<u4").tobytes()
        }
        packed = {name: base64.b64encode(zlib.compress(data)).decode() for name, data in parts.items()}
        return {"shape": list(self.shape), "dtype": self.dtype, "bits": self.bits, "symbols": self.table.shape[-1], **packed}

    @staticmethod
    def of_description(read: Any) -> Coder:
        """Undo `described`.

        Raises:
          ArtifactError: for what is no coder.
        """
        try:
            low, step, table = (_unpacked(read[name]) for name in ("low", "step", "table"))
            bits, symbols = int(read["bits"]), int(read["symbols"])
            made = Coder(
                shape=tuple(int(n) for n in read["shape"]),
                dtype=str(dtype_of(read["dtype"])),
                bits=bits,
                low=np.frombuffer(low, "<f4"),
                step=np.frombuffer(step, "<f4"),
                table=np.frombuffer(table, "<u4").astype(np.int64).reshape(-1, symbols),
            )
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ArtifactError(f"the file holds no tables of the wire ({error}); write it anew with edge.save") from error
        sizes = [2 ** (bits * group) for group in range(1, neighbours(bits) + 1)] if 0 < bits <= _ALPHABET else []
        good = bits == 0 or (len(made.table) == len(made.low) and symbols in sizes)
        if not good or (bits and (made.table.sum(1) != 1 << 16).any()) or len(made.low) != len(made.step):
            raise ArtifactError("the tables of the wire do not fit together; write the file anew with edge.save")
        return made


@checked
def fit(values: Any, wire: Wire) -> Coder:
    """Find levels and tables on calibration examples.

    Args:
      values: ``[N, ..., C]``; if it is not floating, or has one axis, it goes as it is.
      wire: the settings.

    Returns:
      the coder; a channel's levels begin at its least value or at 0, whichever is lower, so that 0 after a relu is a level.

    Example:
      >>> fit(np.zeros((2, 3), np.int32), Wire(bits=3)).bits
      0
    """
    array = np.asarray(values)
    shape, dtype = array.shape[1:], str(array.dtype)
    if array.ndim < 2 or not array.size or not (np.issubdtype(array.dtype, np.floating) or "float" in dtype):
        nothing = np.zeros(0, np.float32)
        return Coder(shape, dtype, 0, nothing, nothing, np.zeros((0, 1), np.int64))
    flat = np.nan_to_num(array.astype(np.float32).reshape(-1, shape[-1]), posinf=0.0, neginf=0.0)
    low = np.minimum(np.quantile(flat, 1 - wire.clip, axis=0), 0.0).astype(np.float32)
    high = np.quantile(flat, wire.clip, axis=0).astype(np.float32)
    step = np.maximum((high - low) / (wire.levels - 1), 1e-8).astype(np.float32)
    coder = Coder(shape, dtype, wire.bits, low, step, np.zeros((shape[-1], 1), np.int64))
    # Of a single example no symbol is to be half empty.
    group = min(neighbours(wire.bits), max(math.prod(shape[:-1]), 1))
    symbols, channels = together(coder.codes(array), wire.bits, group)
    size = 2 ** (wire.bits * group)
    counts = np.bincount(channels * size + symbols, minlength=shape[-1] * size).reshape(shape[-1], size)
    # Every symbol may come, if not often.
    return dataclasses.replace(coder, table=rans.frequencies(counts * size + 1))


def neighbours(bits: int) -> int:
    """How many levels make a symbol at most.

    Example:
      >>> [neighbours(bits) for bits in (2, 3, 4, 8)]
      [4, 2, 2, 1]
    """
    return max(_ALPHABET // bits, 1)


def together(codes: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return symbols of so many neighbouring levels of a channel, and the channel of each; the channels one after another.

    Example:
      >>> together(np.array([[1, 2], [3, 0]], np.uint8), 4, 2)
      (array([49,  2]), array([0, 1]))
    """
    channels = codes.shape[-1]
    rows = codes.reshape(-1, channels).T.astype(np.int64)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group)))
    symbols = (rows.reshape(channels, -1, group) << (bits * np.arange(group))).sum(-1)
    return symbols.reshape(-1), np.repeat(np.arange(channels), symbols.shape[1])


@checked
def entropy_bytes(codes: np.ndarray) -> float:
    """Bytes that no coder of single levels can go below, given a table of frequencies for each channel of these codes.

    Example:
      >>> entropy_bytes(np.array([[0, 1], [1, 1], [0, 1], [1, 1]], np.uint8))
      0.5
    """
    total = 0.0
    for channel in codes.reshape(-1, codes.shape[-1]).T:
        shares = np.bincount(channel) / len(channel)
        shares = shares[shares > 0]
        total -= float((shares * np.log2(shares)).sum()) * len(channel) / 8
    return total


def _apart(symbols: np.ndarray, shape: Sequence[int], bits: int, group: int) -> np.ndarray:
    """Undo `together`."""
    channels, size = shape[-1], math.prod(shape) // max(shape[-1], 1)
    rows = (symbols.astype(np.int64).reshape(channels, -1, 1) >> (bits * np.arange(group))) & (2**bits - 1)
    return rows.reshape(channels, -1)[:, :size].T.reshape(shape).astype(np.uint8)


def _unpacked(text: str) -> bytes:
    return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 1 << 26)
