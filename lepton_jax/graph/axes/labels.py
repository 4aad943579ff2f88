"""Labels of axes: which indices of which axes must stay or go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_jax.graph import _compat

FIXED = 0
"""The atom of every index that cannot be removed."""

Part = tuple[np.ndarray, bool]
"""The atoms of one axis, and whether the value is 0 at its removed indices."""


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """The labels of one value.

    `atoms[a][i]` names index `i` of axis `a`; equal names (or names joined by `Labels.pair`) are removed together. `zero[a]`
    holds if the value is exactly 0 at every removable index of axis `a` once the removable slices of the variables are set
    to 0: what a sum over that axis needs, so that leaving the index out changes nothing. `uniform` is the value of
    every element, where that is a known constant. Along the axes in `alike` the value is the same at all removed indices,
    though not 0 (a mean subtracted from silent channels), so that a sum over them can be corrected.

    Example:
      >>> axes = Axes(atoms=(np.array([FIXED]), np.array([1, 2])), zero=(True, True))
      >>> axes.shape
      (1, 2)
    """

    atoms: tuple[np.ndarray, ...]
    zero: tuple[bool, ...]
    uniform: float | None = None
    alike: frozenset[int] = frozenset()

    @classmethod
    def of(cls, parts: Iterable[Part], uniform: float | None = None, alike: Iterable[int] = ()) -> Axes:
        """The labels of a value whose axes have these."""
        atoms, zero = zip(*held) if (held := tuple(parts)) else ((), ())
        return cls(atoms, zero, uniform, frozenset(alike))

    @property
    def parts(self) -> list[Part]:
        """For each axis its atoms, and whether the value is 0 where they are removed."""
        return list(zip(self.atoms, self.zero))

    def only(self, axes: Iterable[int]) -> Axes:
        """The labels with these axes, in this order."""
        kept = list(axes)
        alike = (new for new, old in enumerate(kept) if old in self.alike)
        return Axes.of((self.parts[axis] for axis in kept), self.uniform, alike)

    def without(self, axes: Sequence[int]) -> Axes:
        """The labels with the other axes."""
        return self.only(axis for axis in range(len(self.atoms)) if axis not in axes)

    def known(self, axis: int) -> bool:
        """Whether it is known what the value is at the removed indices of an axis: 0, or the same at all of them."""
        return self.zero[axis] or axis in self.alike

    def forgetting(self) -> Axes:
        """The labels without what is alike."""
        return replace(self, alike=frozenset()) if self.alike else self

    @property
    def blank(self) -> bool:
        """Whether every element is 0."""
        return self.uniform == 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return tuple(len(a) for a in self.atoms)


class Labels:
    """Collects, in one pass over a graph, which atoms are equal and which are fixed, and why.

    Args:
      failed: for every reshape that was tried before, the ways to carry labels through it that turned out fixed, and why; for
        a sum over several axes that may lose indices, those of them that may not.
      cutting: whether the removed indices are known: only they are labelled, and 0 means that an index stays.
      variables: how many atoms belong to slices of variables; atoms above it belong to constants.

    Example:
      >>> labels = Labels()
      >>> first, second = labels.fresh(2), labels.fresh(2)
      >>> labels.pair(first, second, "an addition")
      >>> [(left.tolist(), right.tolist()) for left, right in zip(labels.left, labels.right)]
      [([1, 2], [3, 4])]
    """

    def __init__(self, failed: Mapping[Any, Mapping[Any, str]] | None = None, *, cutting: bool = False, variables: int = 0):
        self.cutting = cutting
        self.variables = variables
        self.count = 1 + variables
        self.left: list[np.ndarray] = []
        self.right: list[np.ndarray] = []
        self.fixes: list[tuple[np.ndarray, str]] = []
        self.failed = dict(failed or {})
        self.carried: dict[Any, tuple[np.ndarray, Any, Any]] = {}
        self.sums: dict[Any, Mapping[int, np.ndarray]] = {}
        self.unknown: dict[str, None] = {}
        self._zeros: dict[int, np.ndarray] = {}

    def fixed(self, n: int) -> np.ndarray:
        """The labels of an axis of `n` fixed indices."""
        if n not in self._zeros:
            self._zeros[n] = np.zeros(n, np.int64)
        return self._zeros[n]

    def fresh(self, n: int) -> np.ndarray:
        """The labels of an axis of `n` free indices; an axis of length 1 is fixed, having nothing to lose."""
        if n <= 1:
            return self.fixed(n)
        self.count += n
        return np.arange(self.count - n, self.count)

    def is_fixed(self, atoms: np.ndarray) -> bool:
        """Whether every index of an axis is fixed from the start."""
        return atoms is self._zeros.get(len(atoms)) or not atoms.any()

    def is_constant(self, atoms: np.ndarray) -> bool:
        """Whether the free indices of an axis, as far as is known here, are those of constants alone."""
        return not ((atoms != FIXED) & (atoms <= self.variables)).any()

    def best(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Of axes that were paired, the one that tells most: of a variable, else fixed, else of a constant."""
        return min(axes, key=lambda atoms: (self.is_constant(atoms), not self.is_fixed(atoms)))

    def pair(self, a: np.ndarray, b: np.ndarray, why: str) -> None:
        """Record that two axes of equal length are removed index by index together."""
        if a is b:
            return
        self.left.append(a)
        self.right.append(b)
        mixed = (a == FIXED) != (b == FIXED)
        if mixed.any():
            self.fixes.append(((a + b)[mixed], f"{why} with a fixed axis"))

    def fix(self, atoms: np.ndarray, why: str) -> None:
        """Record that no index of an axis can be removed."""
        if self.is_fixed(atoms):
            return
        self.left.append(atoms)
        self.right.append(self.fixed(len(atoms)))
        self.fixes.append((atoms[atoms != FIXED], why))

    def fix_all(self, values: Sequence[Axes], why: str) -> None:
        """Record that no axis of these values loses an index."""
        for value in values:
            for atoms in value.atoms:
                self.fix(atoms, why)

    def constant(self, shape: Sequence[int], uniform: float | None = None) -> Axes:
        """The labels of a value that depends on nothing: any index may go, the rest is what it was."""
        return Axes(tuple(self.fresh(n) for n in shape), (uniform == 0,) * len(shape), uniform)

    def immovable(self, shape: Sequence[int]) -> Axes:
        """The labels of a value none of whose axes loses an index."""
        return Axes.of(map(self.still, shape))

    def still(self, n: int) -> Part:
        """The part of an axis of `n` fixed indices."""
        return self.fixed(n), True

    def reshaped(self, key: Any, flat: np.ndarray, option: Any, kind: Any) -> None:
        """Record which way of carrying labels a reshape took; reshapes of one kind do the same elsewhere."""
        self.carried[key] = (flat, option, kind)


def lengths(dims: Iterable[Any]) -> tuple[int, ...]:
    """The lengths of axes; symbolic ones have a stand-in."""
    return tuple(map(_compat.concrete, dims))


def all_zero(labels: Labels, atoms: np.ndarray, zero: bool) -> bool:
    """`zero`, or true for want of any index that could be removed."""
    return zero or labels.is_fixed(atoms)
