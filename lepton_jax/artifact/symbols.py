"""Streams of small symbols (codes of weights, bytes of numbers): the coders compete, and the smallest output is kept.

A stream is written as one byte that names its coder, and what the coder needs. Where one symbol makes up most of the stream
(the pruned weights), positions and the other symbols are coded apart.
"""

from __future__ import annotations

import math

import numpy as np

from lepton_jax.artifact import rans, sparse_index
from lepton_jax.artifact.errors import ArtifactError
from lepton_jax.artifact.rangecoder import Decoder, Encoder, Mixer
from lepton_jax.artifact.streams import Reader, Writer

CODERS = ("bits", "constant", "rans", "mixing", "holes")
_BITS, _CONSTANT, _RANS, _MIXING, _HOLES = range(5)
_MIXING_LIMIT = 1 << 20
_HOLE_SHARE = 0.5


def smallest(candidates: list[Writer]) -> Writer:
    """Return the shortest; among equals the first."""
    return min(candidates, key=len)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows (all axes but the last) and columns."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def _width(alphabet: int) -> int:
    return max((alphabet - 1).bit_length(), 1)


def encode(symbols: np.ndarray, alphabet: int, shape: tuple[int, ...], holes: bool = True) -> Writer:
    """Code symbols losslessly.

    Args:
      symbols: flat unsigned integers below `alphabet`.
      alphabet: at most 256.
      shape: the tensor's, whose rows and columns serve as contexts.
      holes: whether one frequent symbol may be coded as positions.

    Returns:
      The shortest stream found.
    """
    candidates = [_encode_bits(symbols, alphabet)]
    counts = np.bincount(symbols, minlength=alphabet)
    top = int(counts.argmax())
    if len(symbols) and counts[top] == len(symbols):
        writer = Writer()
        writer.put(bytes([_CONSTANT, top]))
        return writer
    if len(symbols) > 256:
        writer, table = Writer(), rans.frequencies(counts)
        writer.put(bytes([_RANS]))
        rans.write_table(writer, table)
        rans.encode(writer, symbols, table)
        candidates.append(writer)
    if len(symbols) * _width(alphabet) <= _MIXING_LIMIT // 4 and (len(symbols) < 8192 or not holes):
        writer = Writer()
        writer.put(bytes([_MIXING]))
        coder = Encoder()
        _code_symbols(coder, symbols.tolist(), len(symbols), alphabet)
        writer.block(coder.finish())
        candidates.append(writer)
    if holes and alphabet > 1 and counts[top] > _HOLE_SHARE * len(symbols):
        writer = Writer()
        writer.put(bytes([_HOLES, top]))
        kept = symbols != top
        writer.put(sparse_index.encode(kept.reshape(matrix_shape(shape)), shape).data)
        rest = symbols[kept]
        if alphabet > 2:
            writer.put(encode(rest - (rest > top), alphabet - 1, (len(rest),), holes=False).data)
        candidates.append(writer)
    return smallest(candidates)


def decode(reader: Reader, count: int, alphabet: int, shape: tuple[int, ...], category: str = "values") -> np.ndarray:
    """Read `count` symbols that `encode` wrote; flat, of dtype uint8.

    Raises:
      ArtifactError: if the stream is not of this alphabet or count.
    """
    coder = reader.take(1)[0]
    if coder == _BITS:
        width = _width(alphabet)
        packed = np.frombuffer(reader.take((count * width + 7) // 8, category), np.uint8)
        stream = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
        symbols = (stream << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.uint8)
    elif coder == _CONSTANT:
        symbols = np.full(count, reader.take(1, category)[0], np.uint8)
    elif coder == _RANS:
        symbols = rans.decode(reader, count, rans.read_table(reader, alphabet), category).astype(np.uint8)
    elif coder == _MIXING and count * _width(alphabet) <= _MIXING_LIMIT:
        decoder = Decoder(reader.block(category))
        symbols = np.array(_code_symbols(decoder, None, count, alphabet), np.uint8)
        decoder.finish()
    elif coder == _HOLES:
        top = reader.take(1)[0]
        kept = sparse_index.decode(reader, matrix_shape(shape), shape).reshape(-1)
        symbols = np.full(count, top, np.uint8)
        rest = int(kept.sum())
        others = decode(reader, rest, alphabet - 1, (rest,), category) if alphabet > 2 else np.full(rest, 0, np.uint8)
        symbols[kept] = others + (others >= top)
    else:
        raise ArtifactError(f"unknown coder {coder} of {category} at offset {reader.offset - 1}")
    if count and int(symbols.max()) >= alphabet:
        raise ArtifactError(f"a symbol beyond the {alphabet} there are, near offset {reader.offset}")
    return symbols


def _encode_bits(symbols: np.ndarray, alphabet: int) -> Writer:
    writer, width = Writer(), _width(alphabet)
    writer.put(bytes([_BITS]))
    stream = symbols.astype(np.uint8)[:, None] >> np.arange(width, dtype=np.uint8) & 1
    writer.put(np.packbits(stream.reshape(-1), bitorder="little").tobytes())
    return writer


def _code_symbols(coder: Encoder | Decoder, symbols: list[int] | None, count: int, alphabet: int) -> list[int]:
    """Code symbols bit by bit down a binary tree, predicted from the two symbols before."""
    width, mixer, out = _width(alphabet), Mixer(4), []
    one = two = 0
    for i in range(count):
        node = 1
        for shift in range(width - 1, -1, -1):
            bit = symbols[i] >> shift & 1 if symbols else 0
            near = one << width | node
            node = node * 2 + mixer.code(coder, bit, (node, node, near, two << 2 * width | near))
        two, one = one, node - (1 << width)
        out.append(one)
    return out
