"""Rows of stacked variables: which a stage has, and the whole again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array, Path
from lepton_jax.stages.facts import StageFacts


def rows_of(leaves: Mapping[Path, Any], facts: StageFacts) -> dict[Path, Any]:
    """Return the leaves that a stage needs, and of stacked ones the rows that it needs.

    Args:
      leaves: of all variables; shapes will do.
      facts: of the stage.
    """
    rows = {path: (low, high) for path, low, high in facts.rows}
    return {path: _sliced(leaves[path], rows.get(path)) for path in facts.leaves}


def merged(stages: Sequence[StageFacts], parts: Sequence[Mapping[Path, Array]], add: bool) -> dict[Path, Array]:
    """Return the leaves of which the stages have parts.

    Args:
      stages: what they are.
      parts: their leaves.
      add: whether a leaf that several stages have is their sum; else it is the first one's.
    """
    found: dict[Path, Array] = {}
    stacked: dict[Path, list[tuple[int, Array]]] = {}
    for facts, part in zip(stages, parts):
        rows = {path: low for path, low, _ in facts.rows}
        for path, leaf in part.items():
            if path in rows:
                stacked.setdefault(path, []).append((rows[path], leaf))
            elif path not in found or add:
                found[path] = leaf if path not in found else found[path] + leaf
    for path, several in stacked.items():
        if path in found and not add:
            continue
        # Runs of one scan have rows of their own; those of two scans over the same stack may share some.
        size = found[path].shape[0] if path in found else max(low + leaf.shape[0] for low, leaf in several)
        whole = found[path] if path in found else jnp.zeros((size, *several[0][1].shape[1:]), several[0][1].dtype)
        for low, leaf in several:
            there = whole.at[low : low + leaf.shape[0]]
            whole = there.add(leaf) if add else there.set(leaf)
        found[path] = whole
    return found


def _sliced(leaf: Any, rows: tuple[int, int] | None) -> Any:
    if rows is None:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((rows[1] - rows[0], *leaf.shape[1:]), leaf.dtype)
    return leaf[rows[0] : rows[1]]
