"""Scores from elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Gathered, wide


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Gathered):
    """Score by arrays made beforehand: a ticket's final weights, another network's scores, masks (True above False).

    Args:
      by_path: the scores of every selected leaf, of its shape; bool, integer or floating. More paths than are selected do no
        harm.

    Raises:
      ValueError: in `init_all`, with every selected leaf that has no scores, or scores of another shape.

    Example:
      >>> w = {"a": jnp.array([3.0, -4.0])}
      >>> criterion = Given(by_path={"a": jnp.array([True, False])})
      >>> criterion.score_all(w, criterion.init_all(w, w), w)["a"].tolist()
      [1.0, 0.0]
    """

    by_path: Mapping[Path, Array] = dataclasses.field(repr=False)

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        del params
        with collect("Given: every selected leaf needs scores of its shape") as problems:
            for path, weight in weights.items():
                if path not in self.by_path:
                    problems.append(f"{path}: has none; there are scores for {', '.join(self.by_path) or 'no leaf'}")
                elif jnp.shape(self.by_path[path]) != weight.shape:
                    problems.append(f"{path}: has shape {weight.shape}; got scores of shape {jnp.shape(self.by_path[path])}")
        # Copies: whoever donates the state must not take the scores themselves with it.
        return {path: wide(jnp.array(self.by_path[path], copy=True)) for path in weights}
