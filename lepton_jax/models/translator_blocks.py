"""Blocks of a translator: its encoder's, its decoder's, and the attention in both."""

from typing import Any

import jax
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.attention import attend, attend_to, rotate

Pair = tuple[Array, Array]
"""Keys and values ``[B, L, H, d]``."""


class Heads(nn.Module):
    """The four dense layers of attention.

    Args:
      width: of queries, keys, values and what comes out.
      heads: divides `width`.
      dtype: of the computation.

    Example:
      >>> import jax.numpy as jnp
      >>> heads, y = Heads(width=8, heads=2), jnp.ones((1, 3, 8))
      >>> (keys, values), _ = jax.eval_shape(lambda y: heads.init_with_output(jax.random.key(0), y, method="hold"), y)
      >>> keys.shape
      (1, 3, 2, 4)
    """

    width: int
    heads: int
    dtype: Any = None

    def setup(self) -> None:
        self.query, self.key, self.value, self.out = (nn.Dense(self.width, dtype=self.dtype) for _ in range(4))

    def ask(self, x: Array) -> Array:
        """Return queries ``[B, L, H, d]``."""
        return self._split(self.query(x))

    def hold(self, y: Array) -> Pair:
        """Return keys and values."""
        return self._split(self.key(y)), self._split(self.value(y))

    def answer(self, found: Array) -> Array:
        """Return ``[B, L, D]`` of what was found, ``[B, L, H, d]``."""
        return self.out(found.reshape(*found.shape[:2], -1))

    def _split(self, y: Array) -> Array:
        return y.reshape(*y.shape[:2], self.heads, -1)


class EncoderBlock(nn.Module):
    """Attention in both directions, then a layer pair with ReLU; each of the normed input and added to it.

    Args:
      width: of the residual stream.
      heads: of attention.
      mlp: hidden width of the layer pair.
      dropout: fraction of the values added that are left out in training.
      dtype: of the computation.

    Example:
      >>> import jax.numpy as jnp
      >>> block, there = EncoderBlock(width=8, heads=2, mlp=4), jnp.ones((1, 3), bool)
      >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.ones((1, 3, 8)), there)[0].shape
      (1, 3, 8)
    """

    width: int
    heads: int
    mlp: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, there: Array, train: bool = False) -> Array:
        """Return ``[B, L, D]`` of ``[B, L, D]``; only places that are `there`, ``[B, L]``, are looked at."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        heads = Heads(width=self.width, heads=self.heads, dtype=self.dtype, name="own")
        query, (key, value) = heads.ask(y), heads.hold(y)
        x = x + drop(heads.answer(attend_to(rotate(query), rotate(key), value, there)))
        y = nn.relu(nn.Dense(self.mlp, dtype=self.dtype, name="up")(nn.LayerNorm(dtype=self.dtype)(x)))
        return x + drop(nn.Dense(self.width, dtype=self.dtype, name="down")(y))


class DecoderBlock(nn.Module):
    """Causal attention, attention to what the encoder made, then a layer pair with ReLU; each of the normed input and added.

    Args:
      width, heads, mlp, dropout, dtype: as of `EncoderBlock`.

    Example:
      >>> import jax.numpy as jnp
      >>> block, memory, there = DecoderBlock(width=8, heads=2, mlp=4), jnp.ones((1, 5, 8)), jnp.ones((1, 5), bool)
      >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.ones((1, 3, 8)), memory, there)[0].shape
      (1, 3, 8)
    """

    width: int
    heads: int
    mlp: int
    dropout: float = 0.0
    dtype: Any = None

    def setup(self) -> None:
        self.own, self.other = (Heads(width=self.width, heads=self.heads, dtype=self.dtype) for _ in range(2))
        self.norms = [nn.LayerNorm(dtype=self.dtype) for _ in range(3)]
        self.up, self.down = nn.Dense(self.mlp, dtype=self.dtype), nn.Dense(self.width, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array, memory: Array, there: Array, train: bool = False) -> Array:
        """Return ``[B, L, D]`` of ``[B, L, D]``, what the encoder made ``[B, S, D]``, and where there is a word ``[B, S]``."""
        y = self.norms[0](x)
        query, (key, value) = self.own.ask(y), self.own.hold(y)
        found = self.own.answer(attend(rotate(query), rotate(key), value))
        return self._rest(x + self.drop(found, deterministic=not train), self.seen(memory), there, train)

    def seen(self, memory: Array) -> Pair:
        """Return keys and values of what the encoder made."""
        return self.other.hold(memory)

    def step(self, x: Array, seen: Pair, there: Array, room: Pair, number: Array) -> tuple[Array, Pair]:
        """Return ``[B, K, D]`` of the token at place `number` of K texts, and keys and values so far ``[B K, room, H, d]``."""
        batch, texts, width = x.shape
        y = self.norms[0](x).reshape(batch * texts, 1, width)
        query, new = rotate(self.own.ask(y), start=number), self.own.hold(y)
        new = (rotate(new[0], start=number), new[1])
        keys, values = (jax.lax.dynamic_update_slice(old, one, (0, number, 0, 0)) for old, one in zip(room, new))
        found = self.own.answer(attend(query, keys, values, start=number)).reshape(batch, texts, -1)
        return self._rest(x + found, seen, there, False), (keys, values)

    def _rest(self, x: Array, seen: Pair, there: Array, train: bool) -> Array:
        found = self.other.answer(attend_to(self.other.ask(self.norms[1](x)), *seen, there))
        x = x + self.drop(found, deterministic=not train)
        return x + self.drop(self.down(nn.relu(self.up(self.norms[2](x)))), deterministic=not train)
