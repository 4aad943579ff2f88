"""Neuron selectivity transfer."""

from typing import Literal

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.typing import Array
from lepton_jax.distillation.numerics import check_rank, unit, wide

Kernel = Literal["linear", "polynomial", "gaussian"]


@checked
def nst(student: Array, teacher: Array, *, kernel: Kernel = "polynomial", degree: int = 2, offset: float = 0.0) -> Array:
    """Return the squared maximum mean discrepancy between the channels' activation patterns, averaged over examples.

    ``mean k(t, t') + mean k(s, s') - 2 mean k(s, t)`` over pairs of channels, each a unit vector over the positions.
    linear: ``x.y``; polynomial: ``(x.y + offset)**degree``; gaussian: ``exp(-|x - y|**2 / (2 v))`` with v the mean of
    ``|s - t|**2`` over the pairs, held fixed. Channels may differ in number.

    Args:
      student: ``[B, H, W, C]`` or ``[B, L, C]``; computed in float32 at least.
      teacher: the same but for C.
      kernel: "linear", "polynomial" or "gaussian".
      degree: of the polynomial, 1 or more.
      offset: of the polynomial, 0 or more.

    Returns:
      float32 scalar.

    Raises:
      ValueError: for positions that differ or are missing (``[B, D]``), or settings out of range.

    Example:
      >>> s, t = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0, 0.0], [2.0, 3.0]]])
      >>> nst(s, t, kernel="linear").item()
      2.0

    Source: Huang and Wang 2017, "Like what you like: knowledge distill via neuron selectivity transfer", eq. (5) and section
    4.3.
    """
    check_option("nst: kernel", kernel, Kernel)
    if not (degree >= 1 and offset >= 0):
        raise ValueError(f"nst: degree must be 1 or more and offset 0 or more; got {degree} and {offset}.")
    check_rank("nst", 3, "[B, ..., C], for it compares channels over positions,", student, teacher)
    if jnp.shape(student)[:-1] != jnp.shape(teacher)[:-1]:
        raise ValueError(
            f"nst: student and teacher must agree in all axes but the last; got {jnp.shape(student)} and {jnp.shape(teacher)}."
        )
    s, t = (_patterns(x) for x in (student, teacher))
    variance = jax.lax.stop_gradient(jnp.mean(_squares(s, t), axis=(1, 2), keepdims=True))
    variance = jnp.maximum(variance, jnp.finfo(variance.dtype).eps)

    def similarity(x: Array, y: Array) -> Array:
        if kernel == "gaussian":
            return jnp.mean(jnp.exp(-_squares(x, y) / (2 * variance)))
        products = _products(x, y)
        return jnp.mean(products if kernel == "linear" else (products + offset) ** degree)

    return similarity(t, t) + similarity(s, s) - 2 * similarity(s, t)


def _patterns(features: Array) -> Array:
    """``[B, C, positions]``, unit vectors."""
    x = wide(features)
    return unit(jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2))


def _products(x: Array, y: Array) -> Array:
    return jnp.einsum("bip,bjp->bij", x, y, precision="highest")


def _squares(x: Array, y: Array) -> Array:
    norms = [jnp.sum(jnp.square(z), axis=-1) for z in (x, y)]
    return jnp.maximum(norms[0][:, :, None] + norms[1][:, None, :] - 2 * _products(x, y), 0)
