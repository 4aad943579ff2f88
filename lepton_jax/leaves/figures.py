"""What a leaf would take elsewhere: its non-zeros, the entropy of its codes, and its bits as papers count them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.coding.arrays import patterns
from lepton_jax.coding.symbols import entropy
from lepton_jax.core.packed import is_coded

_PIECE = 1 << 18


class Figures(NamedTuple):
    """Sizes of one leaf under other codings.

    Args:
      nonzeros: elements of the dense array that are not zero.
      entropy_bytes: the order-0 entropy of its codes, tables left out; of plain numbers, that of the flags that say which are
        zero, and of each byte of the others.
      packed_bytes: fixed bits as in Han et al. 2016, before Huffman coding: for every non-zero its value's bits and a gap of 5
        bits (8 in convolutions), padding zeros counted, and the table of values; or all codes without gaps, if that is less.
    """

    nonzeros: int
    entropy_bytes: float
    packed_bytes: float


def figures(leaf: Any) -> Figures:
    """Return the figures of an array or a coded leaf.

    Example:
      >>> figures(np.array([0.0, 1.0, 2.0, 0.0], np.float32))
      Figures(nonzeros=2, entropy_bytes=1.0, packed_bytes=9.25)
    """
    if is_coded(leaf):
        return leaf.figures()
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(leaf))
        return Figures(leaf.size, words.nbytes, words.nbytes)
    array = np.asarray(leaf)
    kept = (patterns(array).reshape(array.size, -1) != 0).any(1) if array.size else np.zeros(0, bool)
    return of_numbers(kept, array.reshape(-1)[kept], array.shape)


def of_numbers(kept: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> Figures:
    """Return the figures of plain numbers: which elements are not all zero bits, and these."""
    width, stored = 8 * values.dtype.itemsize, patterns(values)
    planes = stored.view(np.uint8).reshape(-1, stored.itemsize).T if stored.size else ()
    bits = _entropy_bits(histogram(kept.view(np.uint8), 2)) + sum(_entropy_bits(histogram(plane, 256)) for plane in planes)
    packed = min(_gap_bits(kept, shape, width), kept.size * width) / 8
    return Figures(int(np.count_nonzero(values)), bits / 8, packed)


def of_codes(
    kept: np.ndarray, nonzeros: int, counts: np.ndarray, shape: tuple[int, ...], *, value_bits: int, bits: int, extra: int
) -> Figures:
    """Return the figures of codes.

    Args:
      kept: which have a value that is coded.
      nonzeros: how many stand for a number that is not zero.
      counts: of each code.
      shape: of the leaf.
      value_bits: of a value, zeros apart.
      bits: of a code.
      extra: bytes of scales or of the table.
    """
    packed = min(_gap_bits(kept, shape, value_bits), kept.size * bits) / 8 + extra
    return Figures(nonzeros, _entropy_bits(counts) / 8, packed)


def histogram(codes: np.ndarray, alphabet: int) -> np.ndarray:
    """Count each code; piece by piece, since numpy takes eight bytes an element for it."""
    counts = np.zeros(alphabet, np.int64)
    for start in range(0, codes.size, _PIECE):
        counts += np.bincount(codes[start : start + _PIECE], minlength=alphabet)
    return counts


def _entropy_bits(counts: np.ndarray) -> float:
    return float(counts.sum()) * max(entropy(counts), 0.0)


def _gap_bits(kept: np.ndarray, shape: tuple[int, ...], value: int) -> int:
    """Bits of Han 2016's relative indices and values: a gap that its bits cannot hold takes padding zeros."""
    width = 8 if len(shape) > 2 else 5
    gaps = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    return int(gaps.size + (gaps >> width).sum()) * (width + value)
