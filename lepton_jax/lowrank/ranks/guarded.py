"""Factors only where they are smaller."""

import dataclasses
import math

from lepton_jax.core.arguments import checked
from lepton_jax.lowrank.method import Method, RankRule
from lepton_jax.lowrank.ranks.rule import Ranks, Weights


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Guarded:
    """A rule that leaves out the weights whose factors would not be smaller.

    Args:
      rule: any other.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank import Fraction, Svd
      >>> Guarded(rule=Fraction(fraction=0.5)).ranks({"a": jnp.ones((8, 8)), "b": jnp.ones((8, 32))}, Svd())
      {'b': 4}
    """

    rule: RankRule

    def ranks(self, weights: Weights, method: Method) -> Ranks:
        """Return ``{path: rank}``."""
        ranks = self.rule.ranks(weights, method)
        return {
            path: rank
            for path, rank in ranks.items()
            if method.at(path).parameters(tuple(weights[path].shape), rank) < math.prod(weights[path].shape)
        }
