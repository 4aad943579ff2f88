"""Positions of structured masks: n of every m neighbours, whole blocks, repeated slices.

An n-of-m mask needs ``log2(C(m, n))`` bits a group: the number of its pattern among all C(m, n), in the order of their bits. A
block mask is stored as the mask of its blocks. Both structures are found in the mask itself.
"""

import math
from itertools import combinations

import numpy as np

from lepton_jax.coding import symbols
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError

_SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32)
_MOST_PATTERNS = 256
_MOST_REPEATS = 1024


def _patterns(n: int, m: int) -> np.ndarray:
    """All patterns of n in m bits, ascending."""
    return np.sort(np.array([sum(1 << bit for bit in some) for some in combinations(range(m), n)], np.int64))


def _grouped(mask: np.ndarray, m: int, axis: int) -> np.ndarray:
    """The mask with an axis of its own for the m neighbours of a group, after the axis that counts the groups."""
    rows, columns = mask.shape
    return mask.reshape((rows // m, m, columns) if axis == 0 else (rows, columns // m, m))


def find_groups(mask: np.ndarray) -> tuple[int, int, int] | None:
    """Return ``(n, m, axis)`` of the smallest groups of m neighbours along an axis that all hold n, 0 < n < m; or None."""
    for m in _SIZES:
        for axis in (0, 1):
            if mask.size and mask.shape[axis] % m == 0:
                # A look at the first group rules out most.
                n = int(mask[:m, 0].sum() if axis == 0 else mask[0, :m].sum())
                if 0 < n < m and math.comb(m, n) <= _MOST_PATTERNS and (_grouped(mask, m, axis).sum(axis + 1) == n).all():
                    return n, m, axis
    return None


def encode_groups(writer: Writer, mask: np.ndarray, n: int, m: int, axis: int, quick: bool = False) -> None:
    """Append the numbers of the groups' patterns."""
    place = np.arange(m)[None, :, None] if axis == 0 else np.arange(m)[None, None, :]
    keys = (_grouped(mask, m, axis).astype(np.int64) << place).sum(axis + 1)
    table = _patterns(n, m)
    writer.put(bytes([n, m, axis]))
    numbers = np.searchsorted(table, keys.reshape(-1))
    writer.put(symbols.encode(numbers, len(table), np.ones(keys.shape, bool), quick=quick).data)


def decode_groups(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    """Read the mask that `encode_groups` wrote."""
    n, m, axis = reader.take(3)
    if not 0 < n < m <= max(_SIZES) or math.comb(m, n) > _MOST_PATTERNS or axis > 1 or matrix[axis] % m:
        raise ArtifactError(f"groups of {n} in {m} along axis {axis} of {matrix}, near offset {reader.offset}")
    table = _patterns(n, m)
    grid = (matrix[0] // m, matrix[1]) if axis == 0 else (matrix[0], matrix[1] // m)
    numbers = symbols.decode(
        reader, grid[0] * grid[1], len(table), np.broadcast_to(np.True_, grid), category="positions"
    ).reshape(grid)
    mask = np.zeros(matrix, bool)
    grouped = _grouped(mask, m, axis)
    for bit in range(m):
        # A view of the mask: what is set here is set there.
        (grouped[:, bit, :] if axis == 0 else grouped[:, :, bit])[...] = (table >> bit & 1).astype(bool)[numbers]
    return mask


def find_repeats(mask: np.ndarray) -> int:
    """Return how many times the mask repeats its first rows; 1 if not; kernels of convolutions pruned as a whole do."""
    rows = mask.shape[0]
    for times in range(min(rows, _MOST_REPEATS), 1, -1):
        # A look at the first rows rules out most.
        period = rows // times
        if rows % times == 0 and (mask[period] == mask[0]).all() and (mask[period:] == mask[:-period]).all():
            return times
    return 1


def find_blocks(mask: np.ndarray) -> tuple[int, int]:
    """Return height and width of the largest blocks that are each of one kind; of a mask with elements.

    Blocks lie side by side from the first element on; the last ones may be cut.
    """
    rows, columns = mask.shape
    height = math.gcd(*(np.flatnonzero((mask[1:] != mask[:-1]).any(1)) + 1).tolist()) or rows
    width = math.gcd(*(np.flatnonzero((mask[:, 1:] != mask[:, :-1]).any(0)) + 1).tolist()) or columns
    return height, width


def spread(blocks: np.ndarray, height: int, width: int, matrix: tuple[int, int]) -> np.ndarray:
    """Return the mask of these blocks."""
    wide = np.repeat(blocks, width, axis=1)[:, : matrix[1]]
    return np.repeat(wide, height, axis=0)[: matrix[0]]
