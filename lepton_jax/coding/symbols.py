"""Streams of small symbols (codes of weights, gaps, bytes of numbers): the coders compete, and the smallest output is kept.

A stream is one byte that names its coder, and what the coder needs.
"""

import numpy as np

from lepton_jax.coding import huffman, rans
from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.coding.rangecoder import decoded, encoded
from lepton_jax.coding.streams import Reader, Writer, turns
from lepton_jax.coding.symbol_bits import code_symbols, width_of
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.limits import cheap

CODERS = ("bits", "constant", "rans", "mixing", "holes", "huffman")
BITS, _CONSTANT, _RANS, _MIXING, HOLES, _HUFFMAN = range(6)
_MIXING_LIMIT = 1 << 18
# Codes of weights resemble their neighbours; the bytes of float32 numbers do not, and mixing codes some 100,000 bits a second.
_MIXING_ALPHABET, _MIXING_BYTES = 128, 1 << 10
# Bytes of mantissas are noise: no entropy coder pays for its time there.
_WORTHWHILE = 0.99


def entropy(counts: np.ndarray) -> float:
    """Bits a symbol that no coder without contexts can go below.

    Example:
      >>> entropy(np.array([4, 2, 2, 0]))
      1.5
    """
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum())


def encode(symbols: np.ndarray, alphabet: int, kept: np.ndarray | None = None, lag: int = 1, *, quick: bool = False) -> Writer:
    """Code symbols losslessly.

    Args:
      symbols: flat unsigned integers below `alphabet`.
      alphabet: at most 256.
      kept: boolean, shape (rows, columns): where in a matrix they stand, in flat order; None: in one column.
      lag: how many rows before lies the neighbour above.
      quick: leave out what is slow to decode.

    Returns:
      The shortest stream found.
    """
    counts, width = np.bincount(symbols, minlength=alphabet), width_of(alphabet)
    if symbols.size and counts.max() == symbols.size:
        return Writer(_CONSTANT, bytes([int(symbols[0])]))
    candidates = [encode_bits(symbols, alphabet)]
    worthwhile = entropy(counts) < _WORTHWHILE * width
    if symbols.size and worthwhile:
        candidates.append(Writer(_HUFFMAN))
        huffman.encode(candidates[-1], symbols, counts)
        if quick and huffman.work(symbols.size, alphabet) > cheap(len(candidates[-1])):
            candidates.pop()
    mixed, limit = False, _MIXING_LIMIT // width if alphabet <= _MIXING_ALPHABET else _MIXING_BYTES
    if symbols.size <= limit and not quick:
        where = np.ones((symbols.size, 1), bool) if kept is None else kept
        stream = encoded(lambda coder: code_symbols(coder, symbols, where, alphabet, lag))
        mixed = symbols.size * width <= turns(len(stream))
        if mixed:
            candidates.append(Writer(_MIXING))
            candidates[-1].block(stream)
    if worthwhile and not mixed and not quick:
        candidates.append(Writer(_RANS))
        table = rans.frequencies(counts)
        rans.write_table(candidates[-1], table)
        rans.encode(candidates[-1], symbols, table)
    return min(candidates, key=len)


def encode_bits(symbols: np.ndarray, alphabet: int) -> Writer:
    """Write every symbol in as many bits as the alphabet needs."""
    return Writer(BITS, pack_bits(symbols, width_of(alphabet)).tobytes())


def decode(
    reader: Reader, count: int, alphabet: int, kept: np.ndarray | None = None, lag: int = 1, category: str = "values"
) -> np.ndarray:
    """Read `count` symbols that `encode` wrote; flat, of dtype uint8.

    Raises:
      ArtifactError: if the stream is not of this alphabet or length.
    """
    coder, width = reader.coder(CODERS, category), width_of(alphabet)
    if coder == BITS:
        symbols = unpack_bits(np.frombuffer(reader.take((count * width + 7) // 8, category), np.uint8), width, count)
    elif coder == _CONSTANT:
        symbols = np.full(count, reader.take(1, category)[0], np.uint8)
    elif coder == _RANS:
        symbols = rans.decode(reader, count, rans.read_table(reader, alphabet), category)
    elif coder == _HUFFMAN:
        symbols = huffman.decode(reader, count, alphabet, category)
    elif coder == _MIXING and count * width <= _MIXING_LIMIT:
        stream = reader.block(category)
        if count * width > turns(len(stream)):
            raise ArtifactError(f"{count} symbols in {len(stream)} bytes declared near offset {reader.offset}")
        reader.work(count * width, "symbols")
        where = np.ones((count, 1), bool) if kept is None else kept
        symbols = decoded(stream, lambda coder: code_symbols(coder, None, where, alphabet, lag))
    else:
        raise ArtifactError(f"coder {CODERS[coder]} cannot hold {count} {category}, near offset {reader.offset}")
    if count and int(symbols.max()) >= alphabet:
        raise ArtifactError(f"a symbol beyond the {alphabet} there are, near offset {reader.offset}")
    return symbols
