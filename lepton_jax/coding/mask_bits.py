"""The adaptive model for masks: bit by bit, from the densities of row and column so far and from the neighbours.

A tensor is read as a matrix: its last axis gives the columns (output units), all others the rows (inputs). Pruned networks
leave many rows and columns wholly empty, so these are coded first, one bit each. What is left is coded bit by bit, predicted
from the densities of its row and column so far and from its neighbours: the pruned weights of one unit lie together, so the
rows just before count, and those one `lag` before (for pixels: the line above).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lepton_jax.coding.rangecoder import Coder, Mixer
from lepton_jax.core.errors import ArtifactError

REACH = 4
# Bits that one mask may have here; larger ones take `mask_rows`, some thirty times faster.
CONTEXT_LIMIT = 1 << 18


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


def nearness(lag: int) -> np.ndarray:
    """Weights of the rows before, nearest last: ``32 / distance**2`` on a grid whose lines are `lag` rows long."""
    weights: dict[int, int] = {}
    for down in range(REACH + 1 if lag > 1 else 1):
        for across in range(-REACH, REACH + 1):
            square, offset = down * down + across * across, down * lag + across
            if offset > 0:
                weights[offset] = max(weights.get(offset, 0), (32 + square // 2) // square)
    out = np.zeros(max(weights), np.int64)
    for offset, weight in weights.items():
        out[-offset] = weight
    return out


def code_line(coder: Coder, numbers: Any | None, hints: list[int], lag: int, width: int = 1) -> list[int]:
    """Code one number a row (or column): whether it holds anything, or a class of how much.

    Args:
      coder: an `Encoder` or a `Decoder`.
      numbers: an array, below ``2**width``; None to decode.
      hints: one small integer a number, known beforehand.
      lag: how far before lies the neighbour above.
      width: bits of a number.
    """
    mixer, out = Mixer(5, limit=60), [0] * len(hints)
    source = [0] * len(hints) if numbers is None else numbers.astype(int).tolist()
    for i, (number, hint) in enumerate(zip(source, hints)):
        before = out[i - 1] if i else 0
        second = out[i - 2] if i > 1 else 0
        above = out[i - lag] if i >= lag else 0
        corner = out[i - lag + 1] if i >= lag - 1 and lag > 1 else 0
        if width == 1:
            contexts = (0, hint, before * 2 + second, before * 4 + above * 2 + corner, hint * 4 + before * 2 + above)
        else:
            contexts = (0, hint, before, above, (before + second + above) * 2 // 3)
        out[i] = mixer.code_number(coder, number, width, contexts)
    return out


def code_mask(
    coder: Coder,
    mask: np.ndarray | None,
    matrix: tuple[int, int],
    lag: int,
    hints: tuple[list[int], list[int]],
    limit: int = CONTEXT_LIMIT,
    ask: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Code a mask; the same call decodes it.

    Args:
      coder: an `Encoder` or a `Decoder`.
      mask: boolean, shape `matrix`; None to decode.
      matrix: (rows, columns).
      lag: how many rows before lies the neighbour above; 1 if there is none.
      hints: one small integer a row, and one a column, known beforehand.
      limit: how many bits there may be where neither row nor column is empty.
      ask: told how many there are, before they are coded; it may raise.

    Returns:
      The mask.

    Raises:
      ArtifactError: if there are more.
    """
    rows = matrix[0]
    column_flags = code_line(coder, None if mask is None else mask.any(axis=0), hints[1], 1)
    if rows == 1:
        return np.array(column_flags, bool)[None, :]
    row_flags = code_line(coder, None if mask is None else mask.any(axis=1), hints[0], lag)
    kept = np.flatnonzero(column_flags)
    if len(kept) * sum(row_flags) > min(limit, CONTEXT_LIMIT):
        raise ArtifactError(f"a mask of {sum(row_flags)} x {len(kept)} bits is too large for its coder")
    if ask is not None:
        ask(len(kept) * sum(row_flags))
    near_weights, mixer = nearness(lag), Mixer(5)
    reach = len(near_weights)
    out = np.zeros((rows + reach, len(kept)), np.int64)
    totals, row_rate, ones = [0] * len(kept), 0, 0
    for seen, i in enumerate(np.flatnonzero(row_flags).tolist()):
        near = near_weights @ out[i : i + reach]
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
