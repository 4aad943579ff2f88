"""Positions: where the non-zeros of a tensor are; an adaptive model for small masks, a static one for large ones.

A tensor is read as a matrix: its last axis gives the columns (output units), all others the rows (inputs). Pruned networks
leave many rows and columns wholly empty, so these are coded first, one bit each. What is left is coded bit by bit, predicted
from the densities of its row and column so far and from its neighbours: the pruned weights of one unit lie together, so the
rows just before count, and those one `lag` before (for pixels: the line above).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_jax.artifact import rans
from lepton_jax.artifact.errors import ArtifactError
from lepton_jax.artifact.rangecoder import Coder, Decoder, Encoder, Mixer
from lepton_jax.artifact.streams import Reader, Writer

_REACH = 4


class Hints:
    """Which units earlier tensors left alive, by their number: a later tensor's rows and columns tend to agree.

    A unit without inputs has no bias and no outputs, so a mask's columns foretell the next mask's rows.
    """

    def __init__(self) -> None:
        self._alive: dict[int, list[int]] = {}

    def remember(self, alive: np.ndarray) -> None:
        """Keep the flags of the units that a tensor's last axis counts."""
        if alive.size > 1:
            self._alive[alive.size] = alive.astype(int).tolist()

    def recall(self, count: int) -> list[int]:
        """The flags of as many units or, for the rows of a flattened image, of the most units that divide them."""
        size = max((size for size in self._alive if count and count % size == 0), default=0)
        return self._alive[size] * (count // size) if size else [2] * count


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows (all axes but the last) and columns."""
    return (int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]) if shape else (1, 1)


def find_lag(mask: np.ndarray) -> int:
    """Return how many rows before lies the neighbour above: where non-zeros of a column coincide most, beyond chance."""
    rows = mask.shape[0]
    candidates = range(_REACH + 1, min(rows // 2, 512) + 1)
    counts = mask.sum(1, dtype=np.float64) / max(mask.shape[1], 1)
    bits = mask.astype(np.uint8)

    def excess(lag: int) -> float:
        return float(np.count_nonzero(bits[lag:] & bits[:-lag]) - counts[lag:] @ counts[:-lag] * mask.shape[1])

    best = max(candidates, key=excess, default=1)
    return best if best > 1 and excess(best) > 0 else 1


def log_class(value: int) -> int:
    """Two classes an octave.

    Example:
      >>> [log_class(value) for value in (0, 1, 2, 3, 4, 5, 6, 8)]
      [0, 2, 4, 5, 6, 6, 7, 8]
    """
    length = value.bit_length()
    return 2 * length + (value >> length - 2 & 1 if length > 1 else 0)


def _rate(ones: int, seen: int) -> int:
    """The rate ``(ones + 0.4) / (seen + 1)`` in 2**-16."""
    return (65536 * ones + 26214) // (seen + 1)


def _nearness(lag: int) -> np.ndarray:
    """Weights of the rows before, nearest last: ``32 / distance**2`` on a grid whose lines are `lag` rows long."""
    weights: dict[int, int] = {}
    for down in range(_REACH + 1 if lag > 1 else 1):
        for across in range(-_REACH, _REACH + 1):
            square, offset = down * down + across * across, down * lag + across
            if offset > 0:
                weights[offset] = max(weights.get(offset, 0), (32 + square // 2) // square)
    out = np.zeros(max(weights), np.int64)
    for offset, weight in weights.items():
        out[-offset] = weight
    return out


def code_flags(coder: Coder, flags: Any | None, hints: list[int], lag: int) -> list[int]:
    """Code one bit a row (or column): whether it holds anything.

    Args:
      coder: an `Encoder` or a `Decoder`.
      flags: list of the bits; None to decode.
      hints: one small integer a bit, known beforehand.
      lag: how far before lies the neighbour above.
    """
    mixer, out = Mixer(5, limit=60), [0] * len(hints)
    for i, hint in enumerate(hints):
        before = out[i - 1] if i else 0
        second = out[i - 2] if i > 1 else 0
        above = out[i - lag] if i >= lag else 0
        corner = out[i - lag + 1] if i >= lag - 1 and lag > 1 else 0
        contexts = (0, hint, before * 2 + second, before * 4 + above * 2 + corner, hint * 4 + before * 2 + above)
        out[i] = mixer.code(coder, flags[i] if flags else 0, contexts)
    return out


def code_mask(coder: Coder, mask: np.ndarray | None, matrix: tuple[int, int], lag: int, hints: Hints) -> np.ndarray:
    """Code a mask; the same call decodes it.

    Args:
      coder: an `Encoder` or a `Decoder`.
      mask: boolean, shape `matrix`; None to decode.
      matrix: (rows, columns).
      lag: how many rows before lies the neighbour above; 1 if there is none.
      hints: what earlier tensors tell.

    Returns:
      The mask.
    """
    rows, columns = matrix
    column_flags = code_flags(coder, None if mask is None else mask.any(axis=0).astype(int).tolist(), hints.recall(columns), 1)
    if rows == 1:
        return np.array(column_flags, bool)[None, :]
    row_flags = code_flags(coder, None if mask is None else mask.any(axis=1).astype(int).tolist(), hints.recall(rows), lag)
    kept = np.flatnonzero(column_flags)
    if len(kept) * sum(row_flags) > _CONTEXT_LIMIT:
        raise ArtifactError(f"a mask of {sum(row_flags)} x {len(kept)} bits is too large for its coder")
    nearness, mixer = _nearness(lag), Mixer(5)
    reach = len(nearness)
    out = np.zeros((rows + reach, len(kept)), np.int64)
    totals, row_rate, ones = [0] * len(kept), 0, 0
    for seen, i in enumerate(np.flatnonzero(row_flags).tolist()):
        near = nearness @ out[i : i + reach]
        around = log_class(int(near.sum()) * 64 // max(len(kept), 1)) << 6
        touching = (out[i + reach - 1] + out[i + reach - lag]).tolist()
        source = [0] * len(kept) if mask is None else mask[i, kept].tolist()
        total = 0
        for j, (bit, local, touch) in enumerate(zip(source, near.tolist(), touching)):
            column, row, local = _rate(totals[j], seen), _rate(total, j), log_class(local)
            expected = log_class(column * (row + row_rate) >> 12)
            contexts = (0, local << 6 | log_class(column), expected << 2 | touch, local, around | log_class(row))
            if mixer.code(coder, bit, contexts):
                out[i + reach, j] = 1
                totals[j] += 1
                total += 1
        ones += total
        row_rate = _rate(ones, (seen + 1) * len(kept))
    full = np.zeros(matrix, bool)
    full[:, kept] = out[reach:] != 0
    return full


_BITS, _CONTEXT, _CLASSES = range(3)
_CONTEXT_LIMIT = 1 << 18


def encode(mask: np.ndarray, lag: int, hints: Hints) -> Writer:
    """Code where a mask is set; the coders compete.

    Args:
      mask: boolean, shape (rows, columns).
      lag: see `find_lag`; the caller stores it.
      hints: what earlier tensors tell.
    """
    writer = Writer()
    writer.put(bytes([_BITS]) + np.packbits(mask, bitorder="little").tobytes())
    if mask.any(1).sum() * mask.any(0).sum() <= _CONTEXT_LIMIT and max(mask.shape) <= _CONTEXT_LIMIT:
        adaptive, coder = Writer(), Encoder()
        adaptive.put(bytes([_CONTEXT]))
        code_mask(coder, mask, mask.shape, lag, hints)
        adaptive.block(coder.finish())
        return min(writer, adaptive, key=len)
    return min(writer, _encode_classes(mask), key=len)


def decode(reader: Reader, matrix: tuple[int, int], lag: int, hints: Hints) -> np.ndarray:
    """Read a mask of `matrix` = (rows, columns) bits that `encode` wrote."""
    coder, (rows, columns) = reader.take(1)[0], matrix
    if coder == _BITS:
        packed = np.frombuffer(reader.take((rows * columns + 7) // 8, "positions"), np.uint8)
        return np.unpackbits(packed, count=rows * columns, bitorder="little").reshape(matrix).astype(bool)
    if coder == _CONTEXT and max(matrix) <= _CONTEXT_LIMIT:
        decoder = Decoder(reader.block("positions"))
        mask = code_mask(decoder, None, matrix, lag, hints)
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
