"""The same fraction of the largest rank everywhere."""

import dataclasses

from lepton_jax.core.arguments import checked
from lepton_jax.lowrank.method import Method, Rank, as_tuple
from lepton_jax.lowrank.ranks.rule import Ranks, Weights, check_multiple, like, to_multiple


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fraction:
    """Take ``floor(fraction * largest rank)``, rounded down to a multiple, at least one multiple.

    Args:
      fraction: of the largest rank of each weight, in (0, 1].
      multiple: of what ranks shall be multiples, where one fits.

    Raises:
      ValueError: for a fraction outside (0, 1] or a multiple below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.svd import Svd
      >>> Fraction(fraction=0.5, multiple=4).ranks({"a": jnp.ones((20, 10)), "b": jnp.ones((64, 40))}, Svd())
      {'a': 4, 'b': 20}
    """

    fraction: float
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Fraction: fraction must be in (0, 1], of the largest rank; got {self.fraction}.")
        check_multiple("Fraction", self.multiple)

    def ranks(self, weights: Weights, method: Method) -> Ranks:
        """Return ``{path: rank}``."""
        return {path: self.of(method.at(path).max_rank(tuple(weight.shape))) for path, weight in weights.items()}

    def of(self, largest: Rank) -> Rank:
        """Return the rank for one weight.

        Example:
          >>> Fraction(fraction=0.25).of((8, 30))
          (2, 7)
        """
        # 0.29 * 100 is 28.999999999999996.
        wanted = [int(self.fraction * side + 1e-9) for side in as_tuple(largest)]
        return like(largest, [to_multiple(r, self.multiple, m, up=False) for r, m in zip(wanted, as_tuple(largest))])
