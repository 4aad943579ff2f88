"""Tokens, as models and data sets hold them."""

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array

PADDING = 0
"""The token that fills up a sentence; it counts nowhere."""


@checked
def as_tokens(x: Array) -> Array:
    """Return tokens as int32 ``[B, L]``.

    Args:
      x: ``[B, L]`` or ``[B, L, 1, 1]``, whole numbers of any dtype, as `lepton_jax.data.load_sst2` has them.

    Example:
      >>> as_tokens(jnp.array([3.0, 0.0]).reshape(1, 2, 1, 1)).tolist()
      [[3, 0]]
    """
    return x.reshape(x.shape[0], -1).astype(jnp.int32)


@checked
def mean_of_words(x: Array, tokens: Array) -> Array:
    """Return the mean of ``x[B, L, D]`` over the places that are not padding; of none, zero.

    Args:
      x: floating.
      tokens: integers ``[B, L]``.

    Returns:
      ``[B, D]``, in the dtype of `x`.

    Example:
      >>> mean_of_words(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[5, 7, 0]])).tolist()
      [[3.0]]
    """
    there = (tokens != PADDING)[..., None].astype(x.dtype)
    return jnp.sum(x * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
