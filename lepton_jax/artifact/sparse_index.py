"""Positions: where the non-zeros of a tensor are, and adaptive models of them and of their codes.

A tensor is read as a matrix: its last axis gives the columns (output units), all others the rows (inputs). Pruned networks
leave many rows and columns wholly empty, so these are coded first, one bit each; what is left is coded bit by bit, predicted
from the densities of its row and column so far and from its neighbours, in the row before and in the row one `lag` before
(for pixels: the line above).
"""

from __future__ import annotations

import math

import numpy as np

from lepton_jax.artifact import rans
from lepton_jax.artifact.errors import ArtifactError

from lepton_jax.artifact.rangecoder import Coder, Decoder, Encoder, Mixer
from lepton_jax.artifact.streams import Reader, Writer

Bits = list[int]


def lags(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Distances between rows that may be neighbours: the inner input axes' strides and, for a plain matrix, a square image's line.

    Example:
      >>> lags((784, 300)), lags((5, 5, 20, 50))
      ((28,), (20, 100))
    """
    strides = {math.prod(shape[axis:-1]) for axis in range(1, len(shape) - 1)}
    if len(shape) == 2:
        strides.add(math.isqrt(shape[0]))
    return tuple(sorted(stride for stride in strides if stride > 1))


def _level(ones: int, seen: int) -> int:
    """A logarithmic class of the rate ``(ones + 1/2) / (seen + 1)``."""
    return ((2 * seen + 2) * 8 // (2 * ones + 1)).bit_length()


def _rate(ones: int, seen: int) -> int:
    """The rate ``(ones + 0.4) / (seen + 1)`` in 2**-16."""
    return (65536 * ones + 26214) // (seen + 1)


def _log(value: int) -> int:
    """Two classes an octave."""
    length = value.bit_length()
    return 2 * length + (value >> length - 2 & 1 if length > 1 else 0)


def code_flags(coder: Coder, flags: Bits | None, count: int, lag: int) -> Bits:
    """Code one bit a row (or column): whether it holds anything."""
    mixer, out, ones = Mixer(4, limit=60), [0] * count, 0
    for i in range(count):
        before = out[i - 1] if i else 0
        second = out[i - 2] if i > 1 else 0
        above = out[i - lag] if i >= lag else 0
        corner = out[i - lag + 1] if i >= lag - 1 and lag > 1 else 0
        contexts = (0, before * 2 + second, before * 4 + above * 2 + corner, above)
        out[i] = mixer.code(coder, flags[i] if flags else 0, contexts)
        ones += out[i]
    return out


def code_mask(coder: Coder, mask: list[Bits] | None, rows: int, columns: int, lag: int) -> list[Bits]:
    """Code a mask of `rows` x `columns` bits; the same call decodes it.

    Args:
      coder: an `Encoder` or a `Decoder`.
      mask: the bits; None to decode.
      rows, columns: the matrix.
      lag: how many rows before lies the neighbour above.

    Returns:
      The mask.
    """
    row_flags = code_flags(coder, [int(any(row)) for row in mask] if mask else None, rows, lag)
    column_flags = code_flags(coder, [int(any(column)) for column in zip(*mask)] if mask else None, columns, 1)
    kept = [j for j, flag in enumerate(column_flags) if flag]
    empty = [0] * columns
    out: list[Bits] = []
    mixer = Mixer(7, sets=3)
    totals, row_rate, seen, ones = [0] * columns, 0, 0, 0
    for i, flag in enumerate(row_flags):
        if not flag:
            out.append(empty)
            continue
        source = mask[i] if mask else empty
        row = [0] * columns
        above = out[i - lag] if i >= lag else empty
        before = out[i - 1] if i else empty
        around = _log(_rate(sum(before) + sum(above), 2 * len(kept)))
        total = visited = one_back = 0
        for j in kept:
            near = before[j] * 2 + above[j]
            column_level = _log(_rate(totals[j], seen))
            row_level = _log(_rate(total, visited))
            expected = _log(_rate(totals[j], seen) * (_rate(total, visited) + row_rate) >> 12)
            contexts = (
                0,
                column_level,
                row_level * 64 + around,
                near * 64 + column_level,
                expected,
                near * 2 + one_back,
                (column_level * 64 + around) * 2 + (total > 0),
            )
            bit = mixer.code(coder, source[j], contexts, min(total, 2))
            row[j] = one_back = bit
            totals[j] += bit
            total += bit
            visited += 1
        seen += 1
        ones += total
        row_rate = _rate(ones, seen * len(kept))
        out.append(row)
    return out


_BITS, _CONTEXT, _CLASSES = range(3)
_CONTEXT_LIMIT = 1 << 20


def encode(mask: np.ndarray, shape: tuple[int, ...]) -> Writer:
    """Code where a mask is set; the coders compete.

    Args:
      mask: boolean, shape (rows, columns).
      shape: the tensor's.
    """
    writer = Writer()
    writer.put(bytes([_BITS]) + np.packbits(mask, bitorder="little").tobytes())
    candidates = [writer]
    if mask.any(1).sum() * mask.any(0).sum() <= _CONTEXT_LIMIT and max(mask.shape) <= _CONTEXT_LIMIT:
        for lag in lags(shape) or (1,):
            writer, coder = Writer(), Encoder()
            writer.put(bytes([_CONTEXT]))
            writer.number(lag)
            code_mask(coder, mask.astype(int).tolist(), *mask.shape, lag)
            writer.block(coder.finish())
            candidates.append(writer)
    if mask.size > 4096:
        candidates.append(_encode_classes(mask))
    return min(candidates, key=len)


def decode(reader: Reader, matrix: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Read a mask of `matrix` = (rows, columns) bits that `encode` wrote."""
    coder, (rows, columns) = reader.take(1)[0], matrix
    if coder == _BITS:
        packed = np.frombuffer(reader.take((rows * columns + 7) // 8, "positions"), np.uint8)
        return np.unpackbits(packed, count=rows * columns, bitorder="little").reshape(matrix).astype(bool)
    if coder == _CONTEXT:
        lag = reader.number()
        decoder = Decoder(reader.block("positions"))
        mask = np.array(code_mask(decoder, None, rows, columns, max(lag, 1)), bool).reshape(matrix)
        decoder.finish()
        return mask
    if coder == _CLASSES:
        return _decode_classes(reader, matrix)
    raise ArtifactError(f"unknown coder {coder} of positions at offset {reader.offset - 1}")


def _density_classes(mask: np.ndarray, axis: int) -> np.ndarray:
    """A class for every row (axis 1) or column (axis 0): 0 where empty, then two an octave of the count."""
    counts = mask.sum(axis)
    fine = np.floor(2 * np.log2(np.maximum(counts, 1))).astype(np.uint8) + 1
    return np.where(counts > 0, fine, 0).astype(np.uint8)


def _encode_classes(mask: np.ndarray) -> Writer:
    """Code bits with one probability for each pair of a row's and a column's class of density, kept in the stream."""
    writer = Writer()
    writer.put(bytes([_CLASSES]))
    axes = [_density_classes(mask, 1), _density_classes(mask, 0)]
    for classes in axes:
        table = rans.frequencies(np.bincount(classes, minlength=64))
        rans.write_table(writer, table)
        rans.encode(writer, classes, table)
    contexts = (axes[0][:, None].astype(np.int64) * 64 + axes[1][None, :])[np.ix_(axes[0] > 0, axes[1] > 0)].reshape(-1)
    bits = mask[np.ix_(axes[0] > 0, axes[1] > 0)].reshape(-1)
    seen, place = np.unique(contexts, return_inverse=True)
    ones = np.bincount(place, weights=bits, minlength=len(seen)).astype(np.int64)
    p1 = np.clip((ones * 65536 + 32768) // np.maximum(np.bincount(place, minlength=len(seen)), 1), 1, 65535)
    writer.put(p1.astype("<u2").tobytes())
    rans.encode(writer, bits.astype(np.intp), np.stack([65536 - p1, p1], 1), place)
    return writer


def _decode_classes(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    axes = [rans.decode(reader, count, rans.read_table(reader, 64), "positions") for count in matrix]
    mask = np.zeros(matrix, bool)
    rows, columns = np.flatnonzero(axes[0]), np.flatnonzero(axes[1])
    contexts = (axes[0][rows][:, None].astype(np.int64) * 64 + axes[1][columns][None, :]).reshape(-1)
    seen, place = np.unique(contexts, return_inverse=True)
    p1 = np.frombuffer(reader.take(2 * len(seen)), "<u2").astype(np.int64)
    if len(p1) and not p1.all():
        raise ArtifactError(f"a probability of 0 near offset {reader.offset}")
    table = np.stack([65536 - p1, p1], 1) if len(seen) else np.array([[65536, 0]])
    bits = rans.decode(reader, len(place), table, "positions", place)
    mask[np.ix_(rows, columns)] = bits.reshape(len(rows), len(columns))
    return mask
