"""A small causal decoder, for character and byte models."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.typing import Array

_Position = Literal["learned", "rotary"]


class Transformer(nn.Module):
    """Predict the next token at every position, by pre-norm blocks of causal self-attention and a GELU layer pair.

    ``x + attention(norm(x))``, then ``x + mlp(norm(x))``; a last norm, then logits. Norms are LayerNorm.

    Args:
      vocabulary: how many tokens.
      depth: how many blocks.
      width: of the residual stream.
      heads: of attention; divides `width`.
      mlp: hidden width of the layer pair.
      max_length: the longest sequence that learned positions allow.
      position: learned embeddings, or rotations of queries and keys.
      tied: whether logits use the embedding table, transposed.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Raises:
      ValueError: if heads do not divide the width, a rotary head has odd width, or a sequence is too long.

    Example:
      >>> model = Transformer(vocabulary=11, depth=1, width=8, heads=2, mlp=16, max_length=4)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))[0].shape
      (2, 3, 11)

    Source: A. Vaswani et al., Attention is all you need, 2017; decoder only and pre-norm as in A. Radford et al., Language
    models are unsupervised multitask learners, 2019; rotary positions from J. Su et al., RoFormer, 2021, equation 34.
    """

    vocabulary: int
    depth: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 512
    max_length: int = 256
    position: _Position = "learned"
    tied: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        check_option("position", self.position, _Position)
        if self.width % self.heads:
            raise ValueError(f"heads must divide width; got {self.heads} heads and width {self.width}.")
        if self.position == "rotary" and (self.width // self.heads) % 2:
            raise ValueError(f"rotary positions need heads of even width; got {self.width} / {self.heads}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Return logits ``[B, L, vocabulary]`` of tokens, integers ``[B, L]``."""
        length = tokens.shape[1]
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)
        x = embed(tokens)
        if self.position == "learned":
            if length > self.max_length:
                raise ValueError(f"sequences may have {self.max_length} tokens; got {length}. Raise max_length.")
            x = x + nn.Embed(self.max_length, self.width, dtype=self.dtype)(jnp.arange(length))[None]
        for _ in range(self.depth):
            x = Block(heads=self.heads, mlp=self.mlp, rotary=self.position == "rotary", dtype=self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        return embed.attend(x) if self.tied else nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype)(x)


class Block(nn.Module):
    """Apply causal self-attention and a GELU layer pair, each to the normed input and added to it.

    Args:
      heads: of attention.
      mlp: hidden width of the layer pair.
      rotary: whether queries and keys are rotated by their position.
      dtype: of the computation.

    Example:
      >>> jax.eval_shape(Block(heads=2, mlp=4).init_with_output, jax.random.key(0), jnp.zeros((1, 3, 8)))[0].shape
      (1, 3, 8)
    """

    heads: int
    mlp: int
    rotary: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[B, L, D]`` of ``[B, L, D]``."""
        batch, length, width = x.shape
        y = nn.LayerNorm(dtype=self.dtype)(x)
        query, key, value = (
            nn.Dense(width, dtype=self.dtype, name=name)(y).reshape(batch, length, self.heads, -1)
            for name in ("query", "key", "value")
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        y = attend(query, key, value).reshape(batch, length, width)
        x = x + nn.Dense(width, dtype=self.dtype, name="out")(y)
        y = nn.Dense(self.mlp, dtype=self.dtype, name="up")(nn.LayerNorm(dtype=self.dtype)(x))
        return x + nn.Dense(width, dtype=self.dtype, name="down")(nn.gelu(y))


@checked
def attend(query: Array, key: Array, value: Array) -> Array:
    """Attend causally: ``softmax(q k^T / sqrt(d), over positions not later) v``, the softmax in float32.

    Args:
      query: ``[B, L, H, d]``.
      key: the same shape.
      value: the same shape.

    Returns:
      ``[B, L, H, d]`` in the dtype of `value`.

    Example:
      >>> attend(jnp.zeros((1, 2, 1, 1)), jnp.zeros((1, 2, 1, 1)), jnp.array([2.0, 4.0]).reshape(1, 2, 1, 1)).ravel()
      Array([2., 3.], dtype=float32)
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / jnp.sqrt(jnp.float32(query.shape[-1]))
    causal = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal[None, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


@checked
def rotate(x: Array) -> Array:
    """Rotate the pairs ``(x_i, x_{i + d/2})`` at position p by ``p * 10000^(-2 i / d)``.

    Products of rotated queries and keys then depend on the distance of their positions alone.

    Args:
      x: ``[B, L, H, d]``, d even.

    Returns:
      The same shape and dtype.

    Example:
      >>> bool((rotate(jnp.ones((1, 1, 1, 2))) == 1).all())
      True
    """
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.outer(jnp.arange(x.shape[1], dtype=jnp.float32), rates)[None, :, None]
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = (low * jnp.cos(angles) - high * jnp.sin(angles), low * jnp.sin(angles) + high * jnp.cos(angles))
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
