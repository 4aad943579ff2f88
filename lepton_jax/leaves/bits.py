"""Codes of a few bits in bytes."""

from __future__ import annotations

import jax.numpy as jnp

from lepton_jax.core.typing import Array


def pack_bits(codes: Array, bits: int) -> Array:
    """Pack unsigned codes of `bits` bits into bytes, little end first.

    Codes may straddle bytes; the last byte is filled with zeros: ``ceil(n * bits / 8)`` bytes in all.

    Args:
      codes: unsigned integers below ``2**bits``, of any shape; read in flat order.
      bits: 1 to 8, or 16.

    Returns:
      uint8 array of one axis.

    Example:
      >>> pack_bits(jnp.array([1, 2, 3, 0], jnp.uint8), 2).tolist()
      [57]
    """
    if bits == 8:
        return codes.astype(jnp.uint8).reshape(-1)
    if bits == 16:
        wide = codes.astype(jnp.uint16).reshape(-1, 1)
        return (wide >> jnp.arange(0, 16, 8, dtype=jnp.uint16)[None, :]).astype(jnp.uint8).reshape(-1)
    if 8 % bits == 0:  # whole codes in a byte: no stream of single bits is made
        flat, shifts = codes.astype(jnp.uint8).reshape(-1), jnp.arange(0, 8, bits, dtype=jnp.uint8)
        flat = jnp.pad(flat, (0, -flat.size % shifts.size)).reshape(-1, shifts.size)
        return jnp.sum(flat << shifts[None, :], axis=1, dtype=jnp.uint8)
    shifts = jnp.arange(bits, dtype=jnp.uint8)
    stream = (codes.astype(jnp.uint8).reshape(-1, 1) >> shifts[None, :]) & 1
    return jnp.packbits(stream.reshape(-1), bitorder="little")


def unpack_bits(words: Array, bits: int, count: int) -> Array:
    """Return the `count` unsigned codes that `pack_bits` packed, as uint8 (uint16 if they have 16 bits).

    Example:
      >>> unpack_bits(jnp.array([57], jnp.uint8), 2, 4).tolist()
      [1, 2, 3, 0]
    """
    if bits == 8:
        return words
    if bits == 16:
        low, high = words.reshape(-1, 2).astype(jnp.uint16).T
        return low | high << 8
    if 8 % bits == 0:
        shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
        return (words[:, None] >> shifts[None, :] & (2**bits - 1)).reshape(-1)[:count]
    stream = jnp.unpackbits(words, count=count * bits, bitorder="little").reshape(count, bits)
    weights = jnp.left_shift(jnp.uint8(1), jnp.arange(bits, dtype=jnp.uint8))
    return jnp.sum(stream * weights[None, :], axis=1, dtype=jnp.uint8)
