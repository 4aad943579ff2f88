"""What stands for a value of the graph while it is written: a name in the file, or a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Dims = tuple[Any, ...]
"""Lengths of axes: whole numbers, or symbolic ones."""


def is_int(dim: Any) -> bool:
    """Whether the length of an axis is known.

    Example:
      >>> is_int(3)
      True
    """
    return isinstance(dim, int | np.integer)


def same(one: Any, other: Any) -> bool:
    """Whether two lengths are equal, as far as is known while the file is written.

    Example:
      >>> same(3, 3), same(3, 4)
      (True, False)
    """
    return bool(int(one) == int(other)) if is_int(one) and is_int(other) else str(one) == str(other)


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes another.

    Example:
      >>> inverse((2, 0, 1))
      (1, 2, 0)
    """
    return tuple(int(axis) for axis in np.argsort(order))


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value that the file computes, its transposes and broadcasts put off as long as that can be.

    A transpose between a convolution and its bias keeps an engine from doing both at once. So a permutation is only noted:
    axis `i` of the value is axis ``order[i]`` of what the file has; and `held` are the lengths that the file has, 1 where
    elements are repeated in the value.

    Args:
      name: in the file.
      shape: of the value.
      dtype: of the value, and in the file.
      order: where the file has each axis; () if it is where it is.
      held: lengths as the file has them, in the value's order of axes; () if they are the value's.
    """

    name: str
    shape: Dims
    dtype: np.dtype
    order: tuple[int, ...] = ()
    held: Dims = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self.order or tuple(range(len(self.shape))))
        object.__setattr__(self, "held", self.held or tuple(self.shape))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether the file has every axis where it is."""
        return self.order == tuple(range(self.ndim))

    @property
    def is_full(self) -> bool:
        """Whether the file has every element."""
        return all(same(a, b) for a, b in zip(self.held, self.shape))


@dataclass(frozen=True, eq=False)
class Spread:
    """A constant that is repeated along axes of size one, which is put off.

    Args:
      array: with as many axes as `shape`.
      shape: of the value.
    """

    array: np.ndarray
    shape: Dims

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def whole(self) -> np.ndarray:
        """The constant with every element; its lengths must be known."""
        return np.broadcast_to(self.array, self.shape)
