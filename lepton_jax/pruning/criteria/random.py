"""Random scores."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.criteria.base import Criterion


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Criterion):
    """Score every weight by a uniform random number in [0, 1): the baseline of every other criterion.

    Leaves draw independently, each from the key with its path folded in, so that two leaves of one shape differ and the
    scores of a leaf do not depend on which others are selected. The same numbers are drawn at every update.

    Args:
      key: a random key; may be traced, so that `jax.vmap` over keys gives a mask for each.

    Example:
      >>> weights = {"a": jnp.ones(3), "b": jnp.ones(3)}
      >>> criterion = Random(key=jax.random.key(0))
      >>> scores = criterion.score_all(weights, criterion.init_all(weights, weights), weights)
      >>> bool((scores["a"] == scores["b"]).any())
      False
    """

    key: Array = dataclasses.field(repr=False)

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        del params
        return {path: jax.random.fold_in(self.key, zlib.crc32(path.encode())) for path in weights}

    def scores(self, weight: Array, state: Any) -> Array:
        return jax.random.uniform(state, weight.shape, jnp.float32)
