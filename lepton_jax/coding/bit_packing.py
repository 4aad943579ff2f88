"""Codes of a few bits in bytes, little end first, as packed leaves hold them; in pieces, so that little memory is taken."""

from typing import Any

import numpy as np

# A multiple of 8, so that every piece ends on a whole byte.
_PIECE = 1 << 16


def pack_codes(codes: np.ndarray, width: int) -> np.ndarray:
    """Pack codes of `width` bits, 1 to 8 or 16, low bits first.

    Args:
      codes: flat unsigned integers below ``2**width``.
      width: bits a code.

    Returns:
      uint8, ``ceil(n * width / 8)`` bytes.

    Example:
      >>> pack_codes(np.array([1, 2, 3, 0]), 2).tolist()
      [57]
    """
    if width == 8:
        return codes.astype(np.uint8)
    if width == 16:
        return codes.astype("<u2").view(np.uint8)
    out = np.empty((codes.size * width + 7) // 8, np.uint8)
    shifts = np.arange(width, dtype=np.uint8)
    for start in range(0, codes.size, _PIECE):
        stream = codes[start : start + _PIECE].astype(np.uint8)[:, None] >> shifts[None, :] & 1
        part = np.packbits(stream.reshape(-1), bitorder="little")
        out[start * width // 8 : start * width // 8 + part.size] = part
    return out


def unpack_codes(words: Any, width: int, count: int) -> np.ndarray:
    """Return the `count` codes that `pack_codes` packed, as uint8 (uint16 if they have 16 bits).

    Example:
      >>> unpack_codes(np.array([57], np.uint8), 2, 4).tolist()
      [1, 2, 3, 0]
    """
    words = np.asarray(words)
    if width == 8:
        return words[:count]
    if width == 16:
        return np.ascontiguousarray(words[: 2 * count]).view("<u2")
    out = np.empty(count, np.uint8)
    shifts = np.arange(width, dtype=np.uint8)
    for start in range(0, count, _PIECE):
        size = min(_PIECE, count - start)
        part = words[start * width // 8 : (start * width + size * width + 7) // 8]
        stream = np.unpackbits(part, count=size * width, bitorder="little")
        out[start : start + size] = (
            stream if width == 1 else (stream.reshape(size, width) << shifts[None, :]).sum(1, dtype=np.uint8)
        )
    return out
