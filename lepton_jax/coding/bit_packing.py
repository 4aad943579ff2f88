"""Codes of a few bits in bytes, little end first: as packed leaves hold them, and as files do."""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


@checked
def pack_bits(codes: AnyArray, bits: int) -> AnyArray:
    """Pack unsigned codes of `bits` bits into bytes, little end first.

    Codes may straddle bytes; the last byte is filled with zeros: ``ceil(n * bits / 8)`` bytes in all.

    Args:
      codes: unsigned integers below ``2**bits``, of any shape, of jax or numpy; read in flat order.
      bits: 1 to 8, or 16.

    Returns:
      uint8 array of one axis.

    Example:
      >>> pack_bits(jnp.array([1, 2, 3, 0], jnp.uint8), 2).tolist(), pack_bits(np.array([1, 2, 3, 0]), 2).tolist()
      ([57], [57])
    """
    check_whole("pack_bits: bits", bits, 1, 16)
    return _regrouped(codes, bits, 8, -(-codes.size * bits // 8)).astype(np.uint8)


@checked
def unpack_bits(words: AnyArray, bits: int, count: int) -> AnyArray:
    """Return the `count` unsigned codes that `pack_bits` packed, as uint8 (uint16 if they have 16 bits).

    Example:
      >>> unpack_bits(jnp.array([57], jnp.uint8), 2, 4).tolist()
      [1, 2, 3, 0]
    """
    check_whole("unpack_bits: bits", bits, 1, 16)
    if not is_symbolic_dim(count):
        check_whole("unpack_bits: count", count, 0)
    return _regrouped(words, 8, bits, count)


def _regrouped(units: Any, width: int, wanted: int, count: int) -> Any:
    """The first `count` units of `wanted` bits in a stream of units of `width` bits."""
    xp: Any = jnp if isinstance(units, jax.Array) else np
    kind = np.dtype(np.uint8 if max(width, wanted) <= 8 else np.uint16)
    flat = units.astype(kind).reshape(-1)
    if width == wanted:
        return flat[:count]
    if (width, wanted) in ((1, 8), (8, 1)):
        return (xp.packbits if width == 1 else xp.unpackbits)(flat, bitorder="little")[:count]
    period = math.lcm(width, wanted)
    if period > max(width, wanted):  # where codes straddle bytes: by single bits
        return _regrouped(_regrouped(flat, width, 1, flat.size * width), 1, wanted, count)
    # So many units are a whole number of the others; each is moved to its place in all that it overlaps.
    flat = xp.pad(flat, (0, -flat.size % (period // width))).reshape(-1, period // width)
    out = xp.zeros((), kind)
    for at in range(period // width):
        shift = at * width - np.arange(0, period, wanted)
        up, down = (np.clip(sign * shift, 0, 16).astype(kind)[None, :] for sign in (1, -1))
        out = out | flat[:, at : at + 1] << up >> down
    return (out & kind.type(2**wanted - 1)).reshape(-1)[:count]
