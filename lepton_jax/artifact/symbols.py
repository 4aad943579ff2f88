"""Streams of small symbols (codes of weights, bytes of numbers): the coders compete, and the smallest output is kept.

A stream is written as one byte that names its coder, and what the coder needs. Where one symbol makes up most of the stream
(the pruned weights), positions and the other symbols are coded apart.
"""

from __future__ import annotations

import numpy as np

from lepton_jax.artifact import rans, sparse_index
from lepton_jax.artifact.errors import ArtifactError
from lepton_jax.artifact.rangecoder import Coder, Decoder, Encoder, Mixer
from lepton_jax.artifact.sparse_index import Hints
from lepton_jax.artifact.streams import Reader, Writer

CODERS = ("bits", "constant", "rans", "mixing", "holes")
_BITS, _CONSTANT, _RANS, _MIXING, _HOLES = range(5)
_MIXING_LIMIT = 1 << 18
# Codes of weights resemble their neighbours; the bytes of float32 numbers do not, and mixing codes some 100,000 bits a second.
_MIXING_ALPHABET, _MIXING_BYTES = 128, 1 << 10
_HOLE_SHARE = 0.5
# Bytes of mantissas are noise: no entropy coder pays for its time there.
_WORTHWHILE = 0.99


def smallest(candidates: list[Writer]) -> Writer:
    """Return the shortest; among equals the first."""
    return min(candidates, key=len)


def _entropy(counts: np.ndarray) -> float:
    """Bits a symbol that no coder without contexts can go below."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _width(alphabet: int) -> int:
    return max((alphabet - 1).bit_length(), 1)


def encode(symbols: np.ndarray, alphabet: int, shape: tuple[int, ...], hints: Hints, holes: bool = True) -> Writer:
    """Code symbols losslessly.

    Args:
      symbols: flat unsigned integers below `alphabet`.
      alphabet: at most 256.
      shape: the tensor's, whose rows and columns serve as contexts.
      hints: what earlier tensors tell.
      holes: whether one frequent symbol may be coded as positions.

    Returns:
      The shortest stream found.
    """
    counts = np.bincount(symbols, minlength=alphabet)
    top = int(counts.argmax())
    if symbols.size and counts[top] == symbols.size:
        return _start(_CONSTANT, bytes([top]))
    if holes and counts[top] > _HOLE_SHARE * symbols.size:
        kept = (symbols != top).reshape(sparse_index.matrix_shape(shape))
        lag = sparse_index.find_lag(kept)
        writer = _start(_HOLES, bytes([top]))
        writer.number(lag)
        writer.put(sparse_index.encode(kept, lag, hints).data)
        rest = symbols[kept.reshape(-1)]
        if alphabet > 2:
            writer.put(_encode_values(rest - (rest > top), alphabet - 1, kept, lag).data)
        return smallest([_encode_bits(symbols, alphabet), writer])
    return _encode_values(symbols, alphabet, np.ones(sparse_index.matrix_shape(shape), bool), 1)


def _encode_values(symbols: np.ndarray, alphabet: int, kept: np.ndarray, lag: int) -> Writer:
    """Code the symbols at the kept positions, with no positions of their own."""
    candidates = [_encode_bits(symbols, alphabet)]
    if symbols.size and (symbols == symbols[0]).all():
        return _start(_CONSTANT, bytes([int(symbols[0])]))
    limit = _MIXING_LIMIT // _width(alphabet) if alphabet <= _MIXING_ALPHABET else _MIXING_BYTES
    if symbols.size <= limit:
        writer, coder = _start(_MIXING), Encoder()
        code_symbols(coder, symbols, kept, alphabet, lag)
        writer.block(coder.finish())
        candidates.append(writer)
    elif _entropy(counts := np.bincount(symbols, minlength=alphabet)) < _WORTHWHILE * _width(alphabet):
        writer, table = _start(_RANS), rans.frequencies(counts)
        rans.write_table(writer, table)
        rans.encode(writer, symbols, table)
        candidates.append(writer)
    return smallest(candidates)


def decode(reader: Reader, alphabet: int, shape: tuple[int, ...], hints: Hints, category: str = "values") -> np.ndarray:
    """Read the symbols of a tensor that `encode` wrote; flat, of dtype uint8.

    Raises:
      ArtifactError: if the stream is not of this alphabet or shape.
    """
    matrix = sparse_index.matrix_shape(shape)
    if reader.peek() != _HOLES:
        return _decode_values(reader, alphabet, matrix, None, 1, category)
    reader.take(1)
    top, lag = reader.take(1)[0], reader.number()
    if not 1 <= lag <= 4096 or top >= alphabet:
        raise ArtifactError(f"lag {lag} or symbol {top} out of range at offset {reader.offset}")
    kept = sparse_index.decode(reader, matrix, lag, hints)
    rest = np.zeros(int(kept.sum()), np.uint8)
    if alphabet > 2:
        rest = _decode_values(reader, alphabet - 1, matrix, kept, lag, category)
    symbols = np.full(kept.size, top, np.uint8)
    symbols[kept.reshape(-1)] = rest + (rest >= top)
    return symbols


def _decode_values(
    reader: Reader, alphabet: int, matrix: tuple[int, int], kept: np.ndarray | None, lag: int, category: str
) -> np.ndarray:
    count = matrix[0] * matrix[1] if kept is None else int(kept.sum())
    coder, width = reader.take(1)[0], _width(alphabet)
    if coder == _BITS:
        packed = np.frombuffer(reader.take((count * width + 7) // 8, category), np.uint8)
        stream = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
        symbols = (stream << np.arange(width, dtype=np.uint8)[None, :]).sum(1, dtype=np.uint8)
    elif coder == _CONSTANT:
        symbols = np.full(count, reader.take(1, category)[0], np.uint8)
    elif coder == _RANS:
        symbols = rans.decode(reader, count, rans.read_table(reader, alphabet), category).astype(np.uint8)
    elif coder == _MIXING and count * width <= _MIXING_LIMIT:
        decoder = Decoder(reader.block(category))
        symbols = code_symbols(decoder, None, np.ones(matrix, bool) if kept is None else kept, alphabet, lag)
        decoder.finish()
    else:
        raise ArtifactError(f"unknown coder {coder} of {category} at offset {reader.offset - 1}")
    if count and int(symbols.max()) >= alphabet:
        raise ArtifactError(f"a symbol beyond the {alphabet} there are, near offset {reader.offset}")
    return symbols


def _start(coder: int, data: bytes = b"") -> Writer:
    writer = Writer()
    writer.put(bytes([coder]) + data)
    return writer


def pack(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """Pack symbols in as many bits as the alphabet needs, low bits first.

    Example:
      >>> pack(np.array([1, 2, 3, 0]), 4).tolist()
      [57]
    """
    stream = symbols.astype(np.uint8)[:, None] >> np.arange(_width(alphabet), dtype=np.uint8)[None, :] & 1
    return np.packbits(stream.reshape(-1), bitorder="little")


def _encode_bits(symbols: np.ndarray, alphabet: int) -> Writer:
    return _start(_BITS, pack(symbols, alphabet).tobytes())


def code_symbols(coder: Coder, symbols: np.ndarray | None, kept: np.ndarray, alphabet: int, lag: int) -> np.ndarray:
    """Code the symbols at the kept positions, bit by bit down a binary tree; the same call decodes them.

    Codes are ordered as the values they stand for, so the mean code of the neighbours in the column predicts well; the column
    itself and the last code in it predict too.

    Args:
      coder: an `Encoder` or a `Decoder`.
      symbols: flat, one for each kept position in order; None to decode.
      kept: boolean, shape (rows, columns).
      alphabet: how many symbols there are.
      lag: how many rows before lies the neighbour above.
    """
    width, mixer = _width(alphabet), Mixer(4)
    rows, columns = np.nonzero(kept)
    source = [0] * len(rows) if symbols is None else symbols.tolist()
    offsets = sorted({1, 2, lag, lag + 1, 2 * lag, max(lag - 1, 1)})
    grid: dict[tuple[int, int], int] = {}
    last: dict[int, int] = {}
    out = []
    for symbol, i, j in zip(source, rows.tolist(), columns.tolist()):
        around = [grid[i - offset, j] for offset in offsets if (i - offset, j) in grid]
        mean = 2 * sum(around) // len(around) + 1 if around else 0
        near, before, column = mean << 8, last.get(j, alphabet) << 8, j << 8
        node = 1
        for shift in range(width - 1, -1, -1):
            bit = mixer.code(coder, symbol >> shift & 1, (node, near | node, before | node, column | node))
            node = node * 2 + bit
        grid[i, j] = last[j] = node - (1 << width)
        out.append(last[j])
    return np.array(out, np.uint8)
