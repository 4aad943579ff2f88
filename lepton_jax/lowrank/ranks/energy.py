"""The least rank that keeps a share of the energy."""

import dataclasses

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.lowrank.ranks.rule import Spectrum, SpectrumRule, check_multiple


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy(SpectrumRule):
    """Take the least r with ``sum_{i<r} s_i^2 >= energy * sum_i s_i^2``, rounded up to a multiple.

    ``s`` are the singular values that the method cuts: of the whitened matrix, for one that whitens. Stacked layers share a
    rank, for the energy of all of them.

    Args:
      energy: the share to keep, in (0, 1].
      multiple: of what ranks shall be multiples, where one fits.

    Raises:
      ValueError: for an energy outside (0, 1] or a multiple below 1.
      TypeError: of `ranks`, inside jit, or for a method whose error no singular values tell.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.svd import Svd
      >>> weights = {"a": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}  # of an energy of 9 + 4 + 1
      >>> Energy(energy=0.9).ranks(weights, Svd()), Energy(energy=0.6).ranks(weights, Svd())
      ({'a': 2}, {'a': 1})
    """

    energy: float
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"Energy: energy must be in (0, 1], the share of squared singular values kept; got {self.energy}.")
        check_multiple("Energy", self.multiple)

    def choose(self, spectrum: Spectrum) -> int:
        errors = spectrum.errors
        # Sums in float64 are exact to about 1e-16 of the whole.
        return int(np.argmax(errors <= (1 - self.energy + 1e-12) * errors[0]))
