"""Sums of gradients as int8 codes, there and back."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.training.reduce.base import Compressed, Leaves

_LEVELS = 127.0


@checked
@dataclass(frozen=True, kw_only=True)
class Int8Reduce(Compressed):
    """The mean of gradients, sent as int8 codes in two shots.

    All leaves are laid end to end, cut into one chunk a device and into blocks of a scale each, ``absmax / 127``. First every
    device sends the codes of chunk j to device j (all-to-all), which adds them up in float32; then it sends the codes of its
    sum to all (all-gather). What rounding loses, in both shots, stays on the device that rounded. Of float32's bytes it sends
    ``(1 + 4 / block) / 4``: 3.94 times fewer at 256.

    Args:
      block: numbers that share a scale.
      dtype: not used: every floating leaf is coded.
      axis: of the devices' mesh.

    Raises:
      ValueError: if a block is empty.

    Example:
      >>> reduce = Int8Reduce()
      >>> grads = {"w": jnp.array([[1.0, 127.0], [3.0, 0.0]])}
      >>> state = jax.vmap(lambda _: reduce.init({"w": jnp.zeros(2)}, 1))(jnp.arange(2))
      >>> mean, _ = jax.vmap(reduce.reduce, axis_name="data")(grads, state)
      >>> mean["w"][0].tolist()
      [2.0, 63.5]

    Source: Wang et al. 2023, "ZeRO++", section 3.3 (all-to-all in place of a ring, so that each sum is rounded twice); error
    feedback in both shots as in Tang et al. 2021, "1-bit Adam", algorithm 1.
    """

    block: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("Int8Reduce: block", self.block, 1)

    def exchange(self, shares: Leaves, shared: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """Send codes to the device that sums them, and the codes of sums to all."""
        count, size = jax.lax.axis_size(self.axis), sum(leaf.size for leaf in shares.values())
        flat = jnp.concatenate([leaf.reshape(-1) for leaf in shares.values()])
        blocks = -(-size // (count * self.block))
        chunks = jnp.pad(flat, (0, count * blocks * self.block - size)).reshape(count, blocks, self.block)
        codes, scales = _codes(chunks)
        own = jnp.sum(_values(*(jax.lax.all_to_all(part, self.axis, 0, 0) for part in (codes, scales))), axis=0)
        summed = _codes(own)
        left = chunks - _values(codes, scales)
        left = left.at[jax.lax.axis_index(self.axis)].add(own - _values(*summed))
        sums = _values(*(jax.lax.all_gather(part, self.axis) for part in summed))
        return _cut(sums, shares), _cut(left, shares), shared


def _codes(x: Array) -> tuple[Array, Array]:
    """Return int8 codes and the scale of each block, along the last axis."""
    scales = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / _LEVELS
    steps = jnp.where(scales > 0, x / scales, 0)
    return jnp.round(steps).astype(jnp.int8), scales


def _values(codes: Array, scales: Array) -> Array:
    return codes.astype(jnp.float32) * scales


def _cut(chunks: Array, like: Leaves) -> Leaves:
    flat, start, found = chunks.reshape(-1), 0, {}
    for path, leaf in like.items():
        found[path] = flat[start : start + math.prod(leaf.shape)].reshape(leaf.shape)
        start += leaf.size
    return found
