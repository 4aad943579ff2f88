"""The bytes of many models that share leaves: what is met again is not coded again."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_jax.artifact import leaves, structure
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.core.typing import PyTree


class TensorSizes:
    """`tensor_bytes` of one tree after another; a leaf, the same object as before, is coded once.

    What a leaf takes depends on the leaves before it only by what its coders ask of them, which is kept beside its size. Leaves
    must not be changed in place; they are kept alive.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.artifact import tensor_bytes
      >>> a, b, sizes = jnp.arange(9.0), jnp.ones((3, 3)), TensorSizes()
      >>> [sizes(tree) == tensor_bytes(tree) for tree in ({"a": a}, {"a": a, "b": b}, {"b": b})], sizes.coded
      ([True, True, True], 2)
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, list[tuple[_Noted, int]]]] = {}
        self.coded = 0
        """How many leaves were coded."""

    def __call__(self, packed: PyTree) -> int:
        hints, total = Hints(), 0

        def leaf_text(_: str, leaf: Any) -> str:
            nonlocal total
            total += self._of(leaf, hints)
            return ""

        structure.describe(packed, leaf_text)
        return total

    def _of(self, leaf: Any, hints: Hints) -> int:
        _, known = self._known.setdefault(id(leaf), (leaf, []))
        for noted, size in known:
            if all(_same(hints.told(count), told) for count, told in noted.asked.items()):
                noted.tell(hints)
                return size
        noted = _Noted(hints)
        size = len(leaves.encode(leaf, noted)[1])
        self.coded += 1
        known.append((noted, size))
        noted.tell(hints)
        return size


class _Noted(Hints):
    """Hints that note what is asked of the earlier leaves', and what is told to later ones."""

    def __init__(self, before: Hints) -> None:
        super().__init__(before.quick, before)
        self._before = Hints(before.quick, before)
        self.asked: dict[int, np.ndarray] = {}
        self._said: list[np.ndarray] = []

    def remember(self, alive: np.ndarray) -> None:
        super().remember(alive)
        self._said.append(alive)

    def recall(self, count: int) -> list[int]:
        self.asked[count] = self._before.told(count)
        return super().recall(count)

    def tell(self, hints: Hints) -> None:
        """Tell what the leaf told."""
        for alive in self._said:
            hints.remember(alive)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.size == other.size and bool((one == other).all())
