"""The same rank everywhere."""

import dataclasses

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.lowrank.method import Method, as_tuple
from lepton_jax.lowrank.ranks.rule import Ranks, Weights, like


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
    """Take one rank for every weight, or the largest where a weight has no such rank.

    A bare number, ``low_rank(8)``, refuses those weights instead.

    Args:
      rank: 1 or more.

    Raises:
      ValueError: for a rank that is no whole number from 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.svd import Svd
      >>> Fixed(rank=8).ranks({"a": jnp.ones((20, 10)), "b": jnp.ones((20, 5))}, Svd())
      {'a': 8, 'b': 5}
    """

    rank: int

    def __post_init__(self) -> None:
        check_whole("Fixed: rank", self.rank, 1)

    def ranks(self, weights: Weights, method: Method) -> Ranks:
        """Return ``{path: rank}``."""
        largest = {path: method.at(path).max_rank(tuple(weight.shape)) for path, weight in weights.items()}
        return {path: like(most, [min(self.rank, side) for side in as_tuple(most)]) for path, most in largest.items()}
