"""Units of weights that go together: rectangular blocks of any size. A slice is a block that is all of every other axis.

A *block* here has a size for every axis of the scores; `full_block` and `slice_block` make one of what a user says.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array


def normal_axis(axis: int, shape: Sequence[int]) -> int:
    """Return the axis counted from the front.

    Raises:
      ValueError: for an axis that is not there.

    Example:
      >>> normal_axis(-1, (2, 3))
      1
    """
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} is none of the {len(shape)} axes of shape {tuple(shape)}.")
    return axis % len(shape)


def full_block(block_shape: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the block's size along every axis of `shape`: 1 along the leading axes that it does not name.

    Raises:
      ValueError: for a size below 1 or a block of more axes than `shape`.

    Example:
      >>> full_block((2, 64), (3, 4, 32))
      (1, 2, 32)
    """
    for size in block_shape:
        check_whole("a block's size", size, 1)
    if len(block_shape) > len(shape):
        raise ValueError(f"a block of shape {tuple(block_shape)} has more axes than scores of shape {tuple(shape)}.")
    sizes = (1,) * (len(shape) - len(block_shape)) + tuple(block_shape)
    return tuple(min(block, max(size, 1)) for block, size in zip(sizes, shape))


def slice_block(axis: int | Sequence[int], shape: Sequence[int], width: int = 1) -> tuple[int, ...]:
    """Return the block that is `width` slices along the given axes, all of every other axis.

    Raises:
      ValueError: for an axis that is not there or given twice.

    Example:
      >>> slice_block(-1, (3, 4, 32), width=8)
      (3, 4, 8)
    """
    given = [normal_axis(a, shape) for a in (axis if isinstance(axis, Sequence) else (axis,))]
    if len(set(given)) < len(given) or not given:
        raise ValueError(f"axis must be one axis or several different ones; got {axis!r} for shape {tuple(shape)}.")
    return tuple(min(width, max(size, 1)) if a in given else max(size, 1) for a, size in enumerate(shape))


def block_means(scores: Array, block: Sequence[int]) -> Array:
    """Return the mean score of every block, as float32; smaller blocks at the end of an axis over the elements they have.

    Equal scores have exactly that mean in blocks of any size: rounding must not tell them apart.

    Example:
      >>> block_means(jnp.array([[1.0, 3.0, 7.0]]), (1, 2)).tolist()
      [[2.0, 7.0]]
    """
    scores = scores.astype(jnp.float32)
    if all(size == 1 for size in block):
        return scores
    first = scores[tuple(slice(None, None, size) for size in block)]
    missing = [(0, -size % width) for size, width in zip(scores.shape, block)]
    split = [part for count, width in zip(first.shape, block) for part in (count, width)]
    within = tuple(range(1, len(split), 2))
    alike = jnp.pad(scores == spread(first, scores.shape, block), missing, constant_values=True)
    totals = jnp.sum(jnp.pad(scores, missing).reshape(split), axis=within)
    counts = jnp.ones((1,) * scores.ndim)
    for axis, (size, width) in enumerate(zip(scores.shape, block)):
        along = jnp.minimum(width, size - width * jnp.arange(first.shape[axis])).astype(jnp.float32)
        counts = counts * jnp.expand_dims(along, [a for a in range(scores.ndim) if a != axis])
    return jnp.where(jnp.all(alike.reshape(split), axis=within), first, totals / counts)


def spread(units: Array, shape: Sequence[int], block: Sequence[int]) -> Array:
    """Return an array of `shape` in which every element has its block's entry of `units`.

    Example:
      >>> spread(jnp.array([[1, 2]]), (2, 3), (2, 2)).tolist()
      [[1, 1, 2], [1, 1, 2]]
    """
    counts = [-(-size // width) for size, width in zip(shape, block)]
    split = [part for count in counts for part in (count, 1)]
    wide = [part for count, width in zip(counts, block) for part in (count, width)]
    repeated = jnp.broadcast_to(units.reshape(split), wide)
    whole = repeated.reshape([count * width for count, width in zip(counts, block)])
    return whole[tuple(slice(size) for size in shape)]


def check_groups(m: int, axis: int, shape: Sequence[int], pad: bool = False) -> None:
    """Raise unless groups of `m` divide the axis, or `pad` is chosen.

    Raises:
      ValueError: naming the axis and sizes.

    Example:
      >>> check_groups(4, -1, (2, 6), pad=True)
      >>> check_groups(4, -1, (2, 6))
      Traceback (most recent call last):
      ...
      ValueError: groups of 4 must divide axis -1; shape (2, 6) has 6 entries there. Choose another m or axis, or pad=True.
    """
    size = shape[normal_axis(axis, shape)]
    if size % m and not pad:
        raise ValueError(
            f"groups of {m} must divide axis {axis}; shape {tuple(shape)} has {size} entries there. "
            "Choose another m or axis, or pad=True."
        )
