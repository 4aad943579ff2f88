"""Causal self-attention: plain, of grouped heads, over a window, after what a cache holds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.models.rope import Rope


class Cache(NamedTuple):
    """What a decoder keeps of the tokens that it has seen, so that the next ones need not look at them anew.

    Attributes:
      keys: ``[depth, B, room, K, d]``, turned by their positions; zero where no token has been.
      values: the same shape.
      length: how many tokens have been, an int32 scalar.
    """

    keys: Array
    values: Array
    length: Array


@checked
def attend(
    query: Array, key: Array, value: Array, *, start: int | Array | None = None, window: int | Array | None = None
) -> Array:
    """Attend causally: ``softmax(q k^T / sqrt(d), over positions not later) v``, the softmax in float32.

    With fewer heads of keys than of queries, head h of the queries looks at head ``h // (H / K)`` of the keys.

    Args:
      query: ``[B, L, H, d]``.
      key: ``[B, M, K, d]``, K a divisor of H.
      value: the shape of `key`.
      start: the position of the first query; the first key's is 0. None: 0.
      window: how many positions a query looks at, its own among them; None: all that are not later.

    Returns:
      ``[B, L, H, d]`` in the dtype of `value`.

    Example:
      >>> attend(jnp.zeros((1, 2, 1, 1)), jnp.zeros((1, 2, 1, 1)), jnp.array([2.0, 4.0]).reshape(1, 2, 1, 1)).ravel()
      Array([2., 3.], dtype=float32)

    Source: A. Vaswani et al., Attention is all you need, 2017; grouped heads: J. Ainslie et al., GQA, 2023; windows: I. Beltagy
    et al., Longformer, 2020, causal as in A. Q. Jiang et al., Mistral 7B, 2023.
    """
    seen = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))
    if start is not None or window is not None:
        at = jnp.arange(query.shape[1])[:, None] + (0 if start is None else start)
        back = at - jnp.arange(key.shape[1])[None]
        seen = back >= 0 if window is None else (back >= 0) & (back < window)
    (*rows, heads, size), groups = query.shape, key.shape[2]
    if heads == groups:
        return _weighted(query, key, value, seen[None])
    # The heads that share keys are one more axis: no key is written twice.
    shared = query.reshape(*rows, groups, heads // groups, size)
    return jax.vmap(lambda one: _weighted(one, key, value, seen[None]), in_axes=3, out_axes=3)(shared).reshape(query.shape)


@checked
def attend_to(query: Array, key: Array, value: Array, there: Array) -> Array:
    """Attend to all places that are there: ``softmax(q k^T / sqrt(d)) v``, the softmax in float32.

    Args:
      query: ``[B, L, H, d]``.
      key: ``[B, M, H, d]``.
      value: the shape of `key`.
      there: bool ``[B, M]``; where a row has none, the mean of all values comes out.

    Returns:
      ``[B, L, H, d]`` in the dtype of `value`.

    Example:
      >>> there = jnp.array([[True, True, False]])
      >>> attend_to(
      ...     jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 3, 1, 1)), jnp.array([2.0, 4.0, 9.0]).reshape(1, 3, 1, 1), there
      ... ).ravel()
      Array([3.], dtype=float32)

    Source: as of `attend`.
    """
    return _weighted(query, key, value, there[:, None, :])


def _weighted(query: Array, key: Array, value: Array, seen: Array) -> Array:
    """The mean of values by softmax of what each query finds alike, where `seen` ``[1 or B, 1 or L, M]`` allows."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / jnp.sqrt(jnp.float32(query.shape[-1]))
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


@checked
def rotate(x: Array, *, rope: Rope = Rope(), start: int | Array = 0) -> Array:
    """Rotate the pairs ``(x_i, x_{i + d/2})`` at position p by the angles of `rope`, ``p * 10000^(-2 i / d)`` by default.

    Products of rotated queries and keys then depend on the distance of their positions alone.

    Args:
      x: ``[B, L, H, d]``, d even.
      rope: which angles.
      start: the position of the first.

    Returns:
      The same shape and dtype.

    Example:
      >>> bool((rotate(jnp.ones((1, 1, 1, 2))) == 1).all())
      True
    """
    half = x.shape[-1] // 2
    cos, sin = (part[None, :, None] for part in rope.turns(jnp.arange(x.shape[1]) + start, x.shape[-1]))
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate((low * cos - high * sin, low * sin + high * cos), axis=-1).astype(x.dtype)
