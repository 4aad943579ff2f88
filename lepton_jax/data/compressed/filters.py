"""Predictions: what is left of numbers when their neighbours are known; each is undone bit for bit.

All work is on unsigned integers modulo their width, in blocks ``(examples, height, width, channels)``; what is left is folded,
so that small differences of either sign are small numbers (0, -1, 1, -2, ... become 0, 1, 2, 3, ...).

Source: Weinberger, Seroussi, Sapiro 2000, "The LOCO-I lossless image compression algorithm" (the median edge detector).
"""

import numpy as np

FILTERS = ("none", "left", "above", "plane", "median", "example")
NONE, _LEFT, _ABOVE, _PLANE, _MEDIAN, _EXAMPLE = range(6)
_AXES = {_LEFT: (2,), _ABOVE: (1,), _PLANE: (1, 2), _EXAMPLE: (0,)}
"""Along which axes the filters take differences."""


def as_block(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the shape that filters see of examples of any shape: images of two or three axes, else rows of numbers.

    Example:
      >>> as_block((5, 8, 9)), as_block((5, 8, 9, 3)), as_block((5,)), as_block((5, 2, 2, 2, 2))
      ((5, 8, 9, 1), (5, 8, 9, 3), (5, 1, 1, 1), (5, 1, 16, 1))
    """
    item = shape[1:]
    if len(item) == 3:
        return shape[0], item[0], item[1], item[2]
    if len(item) == 2:
        return shape[0], item[0], item[1], 1
    return shape[0], 1, int(np.prod(item, dtype=np.int64)), 1


def apply(number: int, x: np.ndarray) -> np.ndarray:
    """Return what is left of a block under one filter, folded.

    Args:
      number: of `FILTERS`.
      x: unsigned integers, four axes, none of length 0.
    """
    if number == NONE:
        return x
    if number == _MEDIAN:
        padded = np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
        return _fold(x - _median(padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]))
    for axis in _AXES[number]:
        x = np.diff(x, axis=axis, prepend=x.dtype.type(0))
    return _fold(x)


def undo(number: int, rest: np.ndarray) -> np.ndarray:
    """Return the block that `apply` made this of."""
    if number == NONE:
        return rest
    rest = _unfold(rest)
    if number == _MEDIAN:
        return _undo_median(rest)
    for axis in reversed(_AXES[number]):
        rest = np.cumsum(rest, axis, rest.dtype)
    return rest


def work(number: int, shape: tuple[int, int, int, int]) -> int:
    """Return what `undo` takes, in turns of a slow loop; the arrays' part, which is small, left out.

    Example:
      >>> work(FILTERS.index("median"), (5, 28, 28, 1)), work(FILTERS.index("left"), (5, 28, 28, 1))
      (275, 0)
    """
    return 5 * (shape[1] + shape[2] - 1) if number == _MEDIAN and min(shape[1:3]) > 1 else 0


def candidates(shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Return the filters that can tell something of a block.

    Example:
      >>> [FILTERS[number] for number in candidates((5, 1, 16, 1))]
      ['none', 'left', 'example']
    """
    examples, height, width, _ = shape
    tells = {_LEFT: width > 1, _ABOVE: height > 1, _PLANE: height > 1 and width > 1, _EXAMPLE: examples > 1}
    tells |= {NONE: True, _MEDIAN: tells[_PLANE]}
    return tuple(number for number in sorted(tells) if tells[number])


def subtract_green(x: np.ndarray) -> np.ndarray:
    """Return three channels as (first - second, second, third - second)."""
    out = x.copy()
    out[..., ::2] -= x[..., 1:2]
    return out


def add_green(x: np.ndarray) -> np.ndarray:
    """Undo `subtract_green`."""
    out = x.copy()
    out[..., ::2] += x[..., 1:2]
    return out


def _median(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Predict from three neighbours: the middle one of left, above and the plane through the three."""
    low, high = np.minimum(left, above), np.maximum(left, above)
    return np.where(corner >= high, low, np.where(corner <= low, high, left + above - corner))


def _undo_median(rest: np.ndarray) -> np.ndarray:
    """Go over the diagonals: all of one depend on the two before it only."""
    examples, height, width, channels = rest.shape
    if min(height, width) == 1:  # there the middle one of three is the neighbour that there is
        return np.cumsum(rest, 2 if height == 1 else 1, rest.dtype)
    moved = np.ascontiguousarray(np.moveaxis(rest, 0, 2)).reshape(height, width, examples * channels)
    padded = np.zeros((height + 1, width + 1, examples * channels), rest.dtype)
    for diagonal in range(height + width - 1):
        row = np.arange(max(0, diagonal - width + 1), min(diagonal, height - 1) + 1)
        column = diagonal - row
        guess = _median(padded[row + 1, column], padded[row, column + 1], padded[row, column])
        padded[row + 1, column + 1] = guess + moved[row, column]
    return np.ascontiguousarray(np.moveaxis(padded[1:, 1:].reshape(height, width, examples, channels), 2, 0))


def _fold(x: np.ndarray) -> np.ndarray:
    one, top = x.dtype.type(1), x.dtype.type(8 * x.itemsize - 1)
    return (x << one) ^ (x.dtype.type(0) - (x >> top))


def _unfold(x: np.ndarray) -> np.ndarray:
    one = x.dtype.type(1)
    return (x >> one) ^ (x.dtype.type(0) - (x & one))
