"""A table of trained values as a number format: k-means, and the look-up that is trained."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array

_LLOYD_STEPS = 50


_SPLIT_STEPS = 25  # empty clusters are filled in these first ones


@checked_but("bits")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
    """A table of `2**bits` trained values, and a zero of its own for the weights that are pruned.

    Args:
      bits: 1 to 7; the codes of a leaf take one bit more in memory, for the zero (in a file, zeros are coded apart).

    Raises:
      ValueError: for bits outside 1 to 7.

    Example:
      >>> Codebook(bits=3).centroids
      8
    """

    bits: int

    def __post_init__(self) -> None:
        check_whole("Codebook: bits", self.bits, 1, 7)

    @property
    def centroids(self) -> int:
        """How many values there are besides the zero."""
        return 2**self.bits


@partial(jax.jit, static_argnames="count")
def k_means(weights: Array, count: int) -> tuple[Array, Array]:
    """Cluster the non-zero weights of one array by Lloyd's method, from evenly spaced centroids.

    Minimises ``sum_i min_j (w_i - c_j)**2``; a cluster left empty splits the one with the largest error. In one dimension
    a cluster is an interval, so a step is a search over the sorted weights and a difference of their running sums.

    Args:
      weights: any shape, float32.
      count: number of centroids.

    Returns:
      (centroids, codes): the centroids in rising order, shape (count,), float32; the codes, uint8, of the weights' shape:
      0 where the weight is 0, j + 1 for centroid j.

    Example:
      >>> centroids, codes = k_means(jnp.array([1.0, 1.2, 0.0, -2.0]), 2)
      >>> [round(c, 3) for c in centroids.tolist()], codes.tolist()
      ([-2.0, 1.1], [2, 2, 0, 1])

    Source: Han, Mao, Dally 2016, "Deep compression", section 3: linear initialisation.
    """
    ordered = jnp.sort(weights.reshape(-1))
    ones = (ordered != 0).astype(jnp.float32)
    before = jnp.concatenate([jnp.zeros((1, 3)), jnp.cumsum(jnp.stack([ones, ordered, ordered**2], axis=1), axis=0)])
    low = jnp.min(weights, initial=jnp.inf, where=weights != 0)
    high = jnp.max(weights, initial=-jnp.inf, where=weights != 0)
    low, high = (jnp.where(jnp.isfinite(bound), bound, 0) for bound in (low, high))

    def boundaries(centroids: Array) -> Array:
        return (centroids[1:] + centroids[:-1]) / 2

    def lloyd(step: int, centroids: Array) -> Array:
        cuts = jnp.searchsorted(ordered, boundaries(centroids), side="right")  # a weight on a boundary belongs below it
        cuts = jnp.concatenate([jnp.zeros(1, cuts.dtype), cuts, jnp.full(1, ordered.size, cuts.dtype)])
        members, sums, squares = jnp.diff(before[cuts], axis=0).T
        means = jnp.where(members > 0, sums / jnp.maximum(members, 1), centroids)
        # A cluster without members (pruned weights leave a gap about 0) takes half of the one with the largest error.
        errors = jnp.where(members > 0, squares - sums * means, 0)
        empty, worst = jnp.argmin(members), jnp.argmax(errors)
        width = jnp.sqrt(jnp.maximum(errors[worst], 0) / jnp.maximum(members[worst], 1))
        split = jnp.sort(means.at[empty].set(means[worst] + width).at[worst].add(-width))
        return jnp.where((members[empty] == 0) & (step < _SPLIT_STEPS), split, means)

    start = low + (high - low) * (jnp.arange(count) + 0.5) / count
    centroids = jax.lax.fori_loop(0, _LLOYD_STEPS, lloyd, start.astype(jnp.float32))
    codes = jnp.searchsorted(boundaries(centroids), weights).astype(jnp.uint8) + 1
    return centroids, jnp.where(weights != 0, codes, 0).astype(jnp.uint8)


@jax.custom_vjp
def look_up(centroids: Array, codes: Array) -> Array:
    """Return ``centroids[codes - 1]``, and 0 where the code is 0; the gradient of a centroid is the sum over its weights.

    Args:
      centroids: shape (k,).
      codes: uint8, any shape, 0 to k.

    Example:
      >>> look_up(jnp.array([-1.0, 2.0]), jnp.array([2, 0, 1], jnp.uint8)).tolist()
      [2.0, 0.0, -1.0]

    Source: Han, Mao, Dally 2016, equation 3.
    """
    return jnp.concatenate([jnp.zeros(1, centroids.dtype), centroids])[codes]


def _look_up_fwd(centroids: Array, codes: Array) -> tuple[Array, tuple[Array, Array]]:
    return look_up(centroids, codes), (centroids, codes)


def _look_up_bwd(saved: tuple[Array, Array], grad: Array) -> tuple[Array, None]:
    centroids, codes = saved
    # Sums under masks: faster on every backend than the scatter that a gather's own transpose would be.
    sums = jax.lax.map(lambda j: jnp.sum(jnp.where(codes == j, grad, 0)), jnp.arange(1, centroids.size + 1, dtype=codes.dtype))
    return sums.astype(centroids.dtype), None


look_up.defvjp(_look_up_fwd, _look_up_bwd)
