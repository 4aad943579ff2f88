"""Values that are not finite, by the paths of their leaves."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect, is_traced
from lepton_jax.core.typing import Path, PyTree


@checked
def not_finite(tree: PyTree) -> list[Path]:
    """Return the paths of floating leaves that have a NaN or an infinity.

    Example:
      >>> not_finite({"a": np.array([1.0, np.nan]), "b": np.ones(1)})
      ['a']
    """
    return [path for path, leaf in paths.flatten(tree).items() if paths.is_floating(leaf) and _count(leaf)]


def check_finite(heading: str, leaves: Mapping[Path, Any]) -> None:
    """Raise if a leaf has a value that is not finite. What is traced, or a shape only, passes.

    A caller that compiles what calls this must call it before, on its own arrays.

    Args:
      heading: what was asked for.
      leaves: floating arrays by path.

    Raises:
      ValueError: with every such path, and how many of its values.

    Example:
      >>> check_finite("low_rank", {"a": np.array([1.0, np.nan]), "b": np.ones(1)})
      Traceback (most recent call last):
      ...
      ValueError: low_rank: weights must be finite; look at how they were trained or read, or deselect these:
        a: 1 of 2 values are NaN or infinite
    """
    with collect(f"{heading}: weights must be finite; look at how they were trained or read, or deselect these") as problems:
        problems.extend(f"{p}: {n} of {x.size} values are NaN or infinite" for p, x in leaves.items() if (n := _count(x)))


def _count(leaf: Any) -> int:
    if is_traced(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
        return 0
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return int(jax.numpy.sum(~jax.numpy.isfinite(leaf)))
    return int(np.count_nonzero(~np.isfinite(np.asarray(leaf))))  # numpy needs no compilation for each new shape
