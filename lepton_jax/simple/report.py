"""What is in a model, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.packed import is_packed, stored_as, unpack
from lepton_jax.core.tables import table
from lepton_jax.core.typing import PyTree

_HEAD = ("leaf", "stored as", "shape", "weights", "non-zeros", "bytes in memory", "smaller")


def report(variables: PyTree, applied: Sequence[str]) -> str:
    """Return an aligned table of a model's leaves.

    Bytes are those in memory: packed leaves by their arrays, without the entropy coding of a file. "smaller" is the bytes of
    the dense leaf over them.

    Args:
      variables: any tree; leaves may be packed.
      applied: what was done, in order.

    Example:
      >>> import jax.numpy as jnp
      >>> print(report({"w": jnp.array([[1.0, 0.0], [2.0, 0.0]]), "b": jnp.ones(2)}, ["prune(sparsity=0.5)"]))
      leaf   stored as  shape  weights  non-zeros   bytes in memory  smaller
      ----------------------------------------------------------------------
      b      float32    2            2  2  100.0 %                8     1.0x
      w      float32    2x2          4  2   50.0 %               16     1.0x
      ----------------------------------------------------------------------
      total                          6  4   66.7 %               24     1.0x
      applied: prune(sparsity=0.5)
    """
    rows, totals = [], np.zeros(4, np.int64)
    whole = paths.flatten(variables, is_packed)
    unpacked = jax.jit(unpack)(whole)  # at once: leaf by leaf, it would compile for each new shape
    for path, leaf in whole.items():
        dense = _plain(unpacked[path])
        counts = np.array([dense.size, np.count_nonzero(dense), nbytes(leaf), dense.nbytes], np.int64)
        totals += counts
        rows.append((path, stored_as(leaf), "x".join(map(str, dense.shape)) or "-", counts))
    rows.append(("total", "", "", totals))
    wide = max(len(f"{counts[1]:,}") for *_, counts in rows)
    cells = [(*names, *_figures(wide, *counts)) for *names, counts in rows]
    head, *lines = table([_HEAD, *cells], left=(0, 1, 2, 4)).splitlines()
    rule = "-" * max(map(len, [head, *lines]))
    return "\n".join([head, rule, *lines[:-1], rule, lines[-1], f"applied: {', '.join(applied) or 'nothing'}"])


def nbytes(leaf: Any) -> int:
    """Bytes of a leaf's arrays in memory.

    Example:
      >>> nbytes(np.zeros(3, np.int8))
      3
    """
    return sum(_plain(array).nbytes for array in jax.tree.leaves(leaf))


def _plain(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _figures(wide: int, size: int, nonzeros: int, stored: int, dense: int) -> tuple[str, ...]:
    """Cells of a row; the counts of non-zeros are `wide`."""
    share = 100 * nonzeros / max(size, 1)
    return f"{size:,}", f"{nonzeros:>{wide},}  {share:>5.1f} %", f"{stored:,}", f"{dense / max(stored, 1):.1f}x"
