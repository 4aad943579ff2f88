"""A block of a decoder: self-attention, then a layer pair."""

from typing import Any, Literal

import jax
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.attention import Cache, attend, rotate
from lepton_jax.models.rms_norm import RMSNorm
from lepton_jax.models.rope import Rope

Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "gelu_exact", "silu", "relu"]
LAYERS = ("query", "key", "value", "out", "gate", "up", "down")
"""The dense layers of a block."""
_ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "relu": nn.relu,
}


class Block(nn.Module):
    """Apply causal self-attention and a layer pair, each to the normed input and added to it.

    The layer pair is ``down(activation(up(y)))``, or gated, ``down(activation(gate(y)) * up(y))``.

    Args:
      heads: of attention.
      mlp: hidden width of the layer pair.
      rotary: whether queries and keys are rotated by their position.
      dtype: of the computation.
      kv_heads: of keys and values, a divisor of `heads`; None: as many as `heads`.
      head_dim: width of a head; None: that of the stream divided by `heads`.
      rope: by which angles they are rotated.
      norm: LayerNorm, or `RMSNorm`.
      norm_offset: of `RMSNorm`.
      epsilon: of the norms.
      head_norm: whether queries and keys are normed, head by head, before they are rotated.
      activation: of the layer pair; "gelu" is the approximation by tanh.
      gated: whether the layer pair has a gate.
      biases: which of query, key, value, out, gate, up and down add a bias.

    Example:
      >>> import jax.numpy as jnp
      >>> jax.eval_shape(Block(heads=2, mlp=4).init_with_output, jax.random.key(0), jnp.zeros((1, 3, 8)))[0].shape
      (1, 3, 8)

    Source: gates: N. Shazeer, GLU variants improve transformer, 2020; norms of queries and keys: M. Dehghani et al., Scaling
    vision transformers to 22 billion parameters, 2023.
    """

    heads: int
    mlp: int
    rotary: bool = False
    dtype: Any = None
    kv_heads: int | None = None
    head_dim: int | None = None
    rope: Rope = Rope()
    norm: Norm = "layer"
    norm_offset: float = 0.0
    epsilon: float = 1e-6
    head_norm: bool = False
    activation: Activation = "gelu"
    gated: bool = False
    biases: tuple[str, ...] = LAYERS

    @nn.compact
    def __call__(self, x: Array, window: int | Array | None = None, cache: Cache | None = None) -> Any:
        """Return ``[B, L, D]`` of ``[B, L, D]``; with this block's part of a cache, also its keys and values anew."""
        batch, length, width = x.shape
        size = self.head_dim or width // self.heads
        y = norm_of(self)(x)
        query, key, value = (
            self._dense(heads * size, name)(y).reshape(batch, length, heads, size)
            for name, heads in (("query", self.heads), ("key", self._groups), ("value", self._groups))
        )
        if self.head_norm:
            query, key = norm_of(self, name="query_norm")(query), norm_of(self, name="key_norm")(key)
        start = 0 if cache is None else cache.length
        if self.rotary:
            query, key = (rotate(part, rope=self.rope, start=start) for part in (query, key))
        if cache is None:
            y = attend(query, key, value, window=window)
        else:
            key, value = (
                jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, start, 0, 0))
                for old, new in ((cache.keys, key), (cache.values, value))
            )
            y = attend(query, key, value, start=start, window=window)
        x = x + self._dense(width, "out")(y.reshape(batch, length, self.heads * size))
        x = x + self._pair(norm_of(self)(x), width)
        return x if cache is None else (x, (key, value))

    @property
    def _groups(self) -> int:
        return self.kv_heads or self.heads

    def _dense(self, width: int, name: str) -> nn.Dense:
        return nn.Dense(width, use_bias=name in self.biases, dtype=self.dtype, name=name)

    def _pair(self, y: Array, width: int) -> Array:
        act: Any = _ACTIVATIONS[self.activation]
        up = self._dense(self.mlp, "up")(y)
        inner = act(self._dense(self.mlp, "gate")(y)) * up if self.gated else act(up)
        return self._dense(width, "down")(inner)


def norm_of(module: Any, name: str | None = None) -> nn.Module:
    """Return the norm that a block's or a decoder's settings ask for."""
    if module.norm == "rms":
        return RMSNorm(epsilon=module.epsilon, offset=module.norm_offset, dtype=module.dtype, name=name)
    return nn.LayerNorm(epsilon=module.epsilon, dtype=module.dtype, name=name)
