"""The adaptive model for large masks: a row (or several narrow ones) is predicted at once, so that arrays do most of the work.

It differs from `mask_bits` in that a row's density is told beforehand, as a class, in place of being learned along the row.
"""

from functools import cache

import numpy as np

from lepton_jax.coding.batch_mixer import BatchMixer
from lepton_jax.coding.mask_bits import code_line, nearness
from lepton_jax.coding.rangecoder import Coder

_CLASS_BITS = 6
_KNOWN = 1 << 17


def log_classes(values: np.ndarray) -> np.ndarray:
    """`log_class` of every element, below 64 for values below 2**31."""
    if values.size and values.max() < _KNOWN and values.min() >= 0:
        return _table()[values]
    return _log_classes(values)


@cache
def _table() -> np.ndarray:
    return _log_classes(np.arange(_KNOWN))


def _log_classes(values: np.ndarray) -> np.ndarray:
    low = np.maximum(values, 1)
    # The exponent of a double is exact, whatever the platform.
    length = np.frexp(low.astype(np.float64))[1].astype(np.int64)
    half = np.where(length > 1, low >> np.maximum(length - 2, 0) & 1, 0)
    return np.where(values > 0, 2 * length + half, 0)


def _batch(size: int) -> int:
    """How many bits of a mask of `size` are predicted at once: large masks learn enough from fewer, larger batches."""
    return min(max(128, 1 << max(size.bit_length() - 12, 0)), 2048)


class _Rows:
    """What is known of a mask while it is coded, and the contexts that follow from it."""

    def __init__(self, rows: np.ndarray, columns: int, classes: np.ndarray | None, lag: int):
        weights = nearness(lag)
        self._reach, self._lag, self._columns, self._classes = len(weights), lag, columns, classes
        self._offsets = np.flatnonzero(weights)
        self._weights = weights[self._offsets].astype(np.int32)[:, None, None]
        # Rows before the first are empty.
        self.done = np.zeros((self._reach + int(rows[-1]) + 1, columns), np.uint8)
        self._column_ones, self._ones, self._seen = np.zeros(columns, np.int64), 0, 0

    def contexts(self, batch: np.ndarray, part: slice) -> tuple[np.ndarray, ...]:
        """The contexts of the bits in these rows and columns, rows before these and columns before `part` being known."""
        at = batch[None, :] + self._reach
        near = (self._weights * self.done[at + (self._offsets - self._reach)[:, None], part]).sum(0)
        touch = self.done[at[0] - 1, part] + self.done[at[0] - self._lag, part]
        overall = (65536 * self._ones + 26214) // (self._seen * self._columns + 1)
        if self._classes is None:
            before = self.done[at[0], : part.start].sum(1, dtype=np.int64)[:, None]
            rate = (65536 * before + 26214) // (part.start + 1)
            row, rate = log_classes(rate), rate + overall
        else:
            row = self._classes[batch][:, None]
            # The rate of a class is that of its least count.
            rate = ((2 + (row & 1)) << np.maximum(row >> 1, 2) - 2) * 65536 // self._columns
        column = (65536 * self._column_ones[part] + 26214) // (self._seen + 1)
        product = column[None, :] * rate
        expected = log_classes(product >> 12 if self._classes is None else product // max(overall, 1))
        around = log_classes(near.sum(1, keepdims=True) * 64 // near.shape[1])
        local = np.minimum(log_classes(near), 63)
        contexts = (
            np.zeros(near.shape, np.int64),
            local << 6 | log_classes(column)[None, :],
            np.minimum(expected, 63) << 2 | touch,
            local,
            np.broadcast_to(np.minimum(around, 63) << 6 | row, near.shape),
        )
        return tuple(context.reshape(-1) for context in contexts)

    def learn(self, batch: np.ndarray, part: slice, bits: np.ndarray) -> None:
        """Take the bits of these rows and columns; the last part of a row ends it."""
        self.done[batch + self._reach, part] = bits
        self._ones += int(bits.sum())
        if part.stop >= self._columns:
            self._column_ones += self.done[batch + self._reach].sum(0, dtype=np.int64)
            self._seen += batch.size

    def mask(self, rows: np.ndarray) -> np.ndarray:
        return self.done[rows + self._reach] != 0


def code_mask(
    coder: Coder,
    mask: np.ndarray | None,
    matrix: tuple[int, int],
    lag: int,
    hints: tuple[list[int], list[int]],
    told: bool,
) -> np.ndarray:
    """Code a mask; the same call decodes it.

    Args:
      coder: an `Encoder` or a `Decoder`.
      mask: boolean, shape `matrix`; None to decode.
      matrix: (rows, columns).
      lag: how many rows before lies the neighbour above; 1 if there is none.
      hints: one small integer a row, and one a column, known beforehand.
      told: whether the classes of the rows' densities are coded beforehand, or only whether rows are empty.

    Returns:
      The mask.
    """
    flags = code_line(coder, None if mask is None else mask.any(axis=0), hints[1], 1)
    counts = None if mask is None else log_classes(mask.sum(1)) if told else mask.any(axis=1)
    classes = code_line(coder, counts, hints[0], lag, _CLASS_BITS if told else 1)
    rows, columns = np.flatnonzero(classes), np.flatnonzero(flags)
    full = np.zeros(matrix, bool)
    if not rows.size or not columns.size:
        return full
    known, mixer = _Rows(rows, columns.size, np.array(classes) if told else None, lag), BatchMixer((1, 4096, 256, 64, 4096))
    width = _batch(rows.size * columns.size)
    step = max(1, width // columns.size)
    for start in range(0, rows.size, step):
        batch = rows[start : start + step]
        source = None if mask is None else mask[np.ix_(batch, columns)].astype(np.int64)
        for left in range(0, columns.size, width):
            part = slice(left, left + width)
            bits = mixer.code(coder, None if source is None else source[:, part].reshape(-1), known.contexts(batch, part))
            known.learn(batch, part, bits.reshape(batch.size, -1))
    full[np.ix_(rows, columns)] = known.mask(rows)
    return full
