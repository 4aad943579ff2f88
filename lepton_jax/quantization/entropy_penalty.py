"""Training for size: the coded bits of quantized weights as a term of the loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, PyTree, Select
from lepton_jax.formats import Format, Uniform, expand
from lepton_jax.formats.ranges import Calibration, MinMax
from lepton_jax.leaves.rounding import calibrated

# Half a count for every level (Krichevsky and Trofimov): what an adaptive coder assumes of a level it has not met, so that
# the way to an empty level has a finite slope.
_PRIOR = 0.5
_WHOLE = 1e-3
"""How far from a level a weight may lie that was rounded to it, in steps, beside what its dtype rounds."""


@checked
def entropy_bits(
    params: PyTree, format: Uniform, *, calibration: Calibration = MinMax(), select: Select = paths.matrices
) -> Array:
    """Estimate the bits that an entropy coder needs for the codes of quantized weights; differentiable.

    With ``u = w / scale + zero_point`` the place of a weight among the levels, each weight counts for the two levels beside
    it, ``c_k = sum_i max(0, 1 - |u_i - k|)``, and

        bits = sum_k c_k log2(n / c_k),

    summed over the leaves, each with its own table. On quantized weights this is exactly n times the empirical entropy: where
    all weights of a symmetric scale lie on levels of the format already, their step is the scale, and nothing is calibrated.
    The derivative is that of the expected code length under additive uniform noise of one step,

        d bits / d w_i = (L(u_i + 1/2) - L(u_i - 1/2)) / scale,    L(k) = -log2((c_k + 1/2) / (n + K / 2)),

    with L interpolated between its K levels: continuous, so that rounding errors of the view do not turn it round; half-way
    between two levels it is the derivative of `bits`, prior apart. It pulls every weight to the cheaper of the levels beside
    it. The scale is held fixed.

    Coders that know of neighbours and rows need less than this; positions of zeros are one of the codes here.

    Args:
      params: the weights as the model sees them, ``fake_quant(format).view``, after pruning or not. Masters may stand here too.
      format: the number format, the same as that of the view.
      calibration: the same as that of the view.
      select: which leaves; those that the view quantizes.

    Returns:
      float32 scalar, bits. Use ``loss + rate * entropy_bits(...)``; with a mean cross entropy in nats, a `rate` of
      ``ln 2 / examples`` weighs a bit of the model as much as a bit of all answers together (a two-part code).

    Raises:
      TypeError: if `format` is no `Uniform`.
      ValueError: for a selector that matches nothing.

    Example:
      >>> weights = {"kernel": jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 3.0, -1.0]])}  # on levels, with the scale 1
      >>> entropy_bits(weights, Uniform(bits=3)).item()  # 4 of 8 take one bit, 2 of 8 two, and two take three
      14.0

    Source: Oktay et al. 2020, "Scalable model compression by entropy penalized reparameterization"; Agustsson and Theis 2020,
    "Universally quantized neural compression" (the noise). Deviation: the density is the weights' own histogram, not learned.
    """
    if not isinstance(format, Uniform):
        raise TypeError(f"entropy_bits: format must be a Uniform, e.g. Uniform(bits=4); got {format!r}.")
    total = jnp.float32(0)
    for weights in paths.select(params, select).values():
        if weights.size:
            known = _Known(calibration=calibration, dtype=weights.dtype.name)
            found = calibrated(jax.lax.stop_gradient(weights), format, known)
            scale, zero_point = (expand(one.astype(jnp.float32), weights.shape, format) for one in found)
            low, high = format.q_range
            place = weights.astype(jnp.float32) / scale + (zero_point - low)
            total += level_bits(high - low + 1, place)
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known(MinMax):
    """The range of weights that lie on levels of a symmetric format: that of these levels; of others, the calibration's.

    The largest magnitude is then at one end of the levels, whichever leaves all others whole. The range that gave the levels is
    not that of what was rounded to them, in which the ends are not half a step off.
    """

    calibration: Calibration
    dtype: str

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> tuple[Array, Array]:
        low, high = self.calibration(x, axes, fmt)
        if not (isinstance(fmt, Uniform) and fmt.symmetric and fmt.signed):
            return low, high
        largest = jnp.max(jnp.abs(jnp.nan_to_num(x)), axes, keepdims=True, initial=0.0)
        bounds = fmt.q_range
        for end in (bounds[1], -bounds[0]):  # of both, the lowest level: half a step is rounded to it
            step = largest / end
            places = x / jnp.where(step > 0, step, 1)
            whole = jnp.round(places)
            near = jnp.abs(places - whole) < _WHOLE + end * jnp.finfo(self.dtype).eps
            on = jnp.all(near & (whole >= bounds[0]) & (whole <= bounds[1]), axes, keepdims=True)
            low, high = (jnp.where(on, sign * step * fmt.steps, bound) for sign, bound in ((-1, low), (1, high)))
        return low, high


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def level_bits(levels: int, places: Array) -> Array:
    """Return the bits of symbols at real places among ``0, 1, ..., levels - 1``; see `entropy_bits` for the derivative.

    Args:
      levels: how many there are.
      places: float32, any shape, not empty; what lies outside counts for the level at the end.

    Example:
      >>> level_bits(4, jnp.array([0.0, 0.0, 1.0, 1.0])).item(), level_bits(4, jnp.full(5, 2.0)).item()
      (4.0, 0.0)
    """
    return _bits(_counts(levels, places), places.size)


def _counts(levels: int, places: Array) -> Array:
    """Soft counts of the levels: a place counts for the two beside it."""
    flat = jnp.clip(jnp.nan_to_num(places.reshape(-1)), 0, levels - 1)
    below = jnp.minimum(jnp.floor(flat), levels - 2)
    share = flat - below
    index = below.astype(jnp.int32)
    return jnp.zeros(levels, jnp.float32).at[index].add(1 - share).at[index + 1].add(share)


def _bits(counts: Array, total: int) -> Array:
    present = counts > 0
    return jnp.sum(jnp.where(present, counts * (jnp.log2(float(total)) - jnp.log2(jnp.where(present, counts, 1))), 0))


def _forward(levels: int, places: Array) -> tuple[Array, tuple[Array, Array]]:
    counts = _counts(levels, places)
    return _bits(counts, places.size), (counts, places)


def _backward(levels: int, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    counts, places = kept
    lengths = jnp.log2(places.size + _PRIOR * levels) - jnp.log2(counts + _PRIOR)
    # Linear interpolation by a table of slopes: two look-ups, no search.
    slopes = jnp.diff(lengths)

    def length(at: Array) -> Array:
        at = jnp.clip(at, 0, levels - 1)
        index = jnp.minimum(jnp.floor(at), levels - 2).astype(jnp.int32)
        return lengths[index] + slopes[index] * (at - index)

    safe = jnp.nan_to_num(places)
    return (cotangent * (length(safe + 0.5) - length(safe - 0.5)).astype(places.dtype),)


level_bits.defvjp(_forward, _backward)
