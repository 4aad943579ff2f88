"""Allocations: how much of each leaf is removed, given how much is to be removed in all."""

from collections.abc import Mapping

from lepton_jax.typing import Path

Shapes = Mapping[Path, tuple[int, ...]]


def uniform(shapes: Shapes, sparsity: float) -> dict[Path, float]:
    """Remove the same fraction of every leaf.

    Args:
      shapes: by path.
      sparsity: fraction removed, [0, 1).

    Returns:
      sparsities by path.

    Example:
      >>> uniform({"a": (2, 2), "b": (8,)}, 0.5)
      {'a': 0.5, 'b': 0.5}
    """
    return dict.fromkeys(shapes, sparsity)
