"""Canonical Huffman codes: whole bits a symbol, as the paper on deep compression codes values and gaps.

A code of lengths l_s needs ``sum_s n_s l_s`` bits, at least the entropy H and less than ``H + n`` for n symbols: a fraction of
a per cent more than H on 4-bit values, but never below one bit a symbol, so that it is no coder for masks. Only the lengths are
kept; the codes are counted up from them, shorter ones first, equal lengths in the order of the symbols.

Source: D. A. Huffman, "A method for the construction of minimum-redundancy codes", 1952; E. S. Schwartz and B. Kallick,
"Generating a canonical prefix encoding", 1964. Deviation: codes longer than 15 bits are shortened (by lifting rare counts).
"""

import heapq

import numpy as np

from lepton_jax.coding.rangecoder import Coder, Mixer, decoded, encoded
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError

_LONGEST = 15
_LENGTH_BITS = 4
# What the tables that are looked up in cost, in turns.
_TURNS = 20
_PIECE = 1 << 16
# Bytes whose every bit is looked up at once, which takes some hundred bytes of memory each.
_LOOKED_UP = 1 << 11


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Return every symbol's bits in an optimal prefix code of at most 15 bits; 0 for symbols without count.

    Args:
      counts: non-negative integers, shape (alphabet,), at least one of them positive, alphabet <= 2**15.

    Example:
      >>> code_lengths(np.array([5, 0, 1, 2])).tolist()
      [1, 0, 2, 2]
    """
    counts = counts.astype(np.int64)
    least, lengths = int(counts.sum()) >> _LONGEST + 1, _unlimited(counts)
    while lengths.max() > _LONGEST:
        least = 2 * least + 1
        lengths = _unlimited(np.where(counts > 0, np.maximum(counts, least), 0))
    return lengths


def _unlimited(counts: np.ndarray) -> np.ndarray:
    present = np.flatnonzero(counts).tolist()
    lengths = np.zeros(len(counts), np.int64)
    if len(present) == 1:
        lengths[present[0]] = 1
        return lengths
    heap = [(int(counts[symbol]), symbol) for symbol in present]
    heapq.heapify(heap)
    parent: dict[int, int] = {}
    node = len(counts)
    while len(heap) > 1:
        (first, a), (second, b) = heapq.heappop(heap), heapq.heappop(heap)
        parent[a] = parent[b] = node
        heapq.heappush(heap, (first + second, node))
        node += 1
    depth = {node - 1: 0}
    for below in range(node - 2, -1, -1):
        if below in parent:
            depth[below] = depth[parent[below]] + 1
    for symbol in present:
        lengths[symbol] = depth[symbol]
    return lengths


def canonical(lengths: np.ndarray) -> np.ndarray:
    """Return the codes of these lengths, the highest bit read first.

    Example:
      >>> canonical(np.array([1, 0, 2, 2])).tolist()
      [0, 0, 2, 3]
    """
    codes, code, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        length = int(lengths[symbol])
        if length:
            code <<= length - before
            codes[symbol] = code
            code, before = code + 1, length
    return codes


def _code_table(coder: Coder, lengths: list[int] | None, alphabet: int) -> list[int]:
    """Code the lengths, each of four bits, from the one before; the same call decodes them."""
    mixer, out, before = Mixer(3, limit=30), [], 0
    for symbol in range(alphabet):
        length = lengths[symbol] if lengths else 0
        node = 1
        for shift in range(_LENGTH_BITS - 1, -1, -1):
            node = node * 2 + mixer.code(coder, length >> shift & 1, (0, node, node << _LENGTH_BITS | before))
        before = node - (1 << _LENGTH_BITS)
        out.append(before)
    return out


def encode(writer: Writer, symbols: np.ndarray, counts: np.ndarray) -> None:
    """Append the lengths and the coded symbols.

    Args:
      writer: where to.
      symbols: flat unsigned integers.
      counts: how often each occurs, shape (alphabet,).
    """
    lengths = code_lengths(counts)
    codes = canonical(lengths)
    writer.block(encoded(lambda coder: _code_table(coder, lengths.tolist(), len(counts))))
    writer.number((int((counts * lengths).sum()) + 7) // 8)
    rest = np.zeros(0, np.uint8)
    for start in range(0, len(symbols), _PIECE):
        piece = symbols[start : start + _PIECE]
        width = lengths[piece]
        ends = np.cumsum(width)
        # How many bits of its code follow each bit.
        after = np.repeat(ends, width) - 1 - np.arange(int(ends[-1]))
        bits = np.concatenate([rest, (np.repeat(codes[piece], width) >> after & 1).astype(np.uint8)])
        whole = len(bits) // 8 * 8
        writer.put(np.packbits(bits[:whole]).tobytes())
        rest = bits[whole:]
    writer.put(np.packbits(rest).tobytes())


def work(count: int, alphabet: int) -> int:
    """Return what decoding takes, in turns of a slow loop."""
    return _TURNS + _LENGTH_BITS * alphabet + count // 64


def decode(reader: Reader, count: int, alphabet: int, category: str) -> np.ndarray:
    """Read `count` symbols that `encode` wrote, as uint8 if the alphabet allows.

    Every bit of the stream is looked up as if a code began there, by arrays; then a short loop steps from code to code.

    Raises:
      ArtifactError: if the lengths make no prefix code, or the stream does not hold the symbols.
    """
    reader.work(work(count, alphabet), "a table of code lengths")
    lengths = np.array(decoded(reader.block(), lambda coder: _code_table(coder, None, alphabet)))
    size = reader.number()
    data = np.frombuffer(reader.take(size, category), np.uint8)
    used = lengths[lengths > 0]
    if not used.size or (2.0**-used).sum() != (1 if used.size > 1 else 0.5):
        raise ArtifactError(f"a table of code lengths near offset {reader.offset} makes no complete prefix code")
    width, symbol = _lookup(lengths)
    out, done, bit = np.empty(count, symbol.dtype), 0, 0
    for start in range(0, size, _LOOKED_UP):
        piece = np.zeros(min(_LOOKED_UP, size - start) + 2, np.uint32)
        part = data[start : start + _LOOKED_UP + 2]
        piece[: len(part)] = part
        triple = piece[:-2] << 16 | piece[1:-1] << 8 | piece[2:]
        windows = (triple[:, None] >> np.arange(9, 1, -1, dtype=np.uint32)[None, :] & 0x7FFF).reshape(-1)
        places: list[int] = []
        steps, at = width[windows].tobytes(), bit
        end, left = len(windows), count - done
        while at < end and len(places) < left:
            places.append(at)
            at += steps[at]
        out[done : done + len(places)] = symbol[windows[places]]
        done, bit = done + len(places), at - end
    if done != count or not -8 < bit <= 0:
        raise ArtifactError(f"a stream of codes near offset {reader.offset} holds other than its {count} symbols")
    return out


def _lookup(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The length and the symbol of the code that begins a window of 15 bits. A single symbol's bit may be of either value."""
    width = np.ones(1 << _LONGEST, np.uint8)
    symbol = np.full(1 << _LONGEST, lengths.argmax(), np.uint8 if len(lengths) <= 256 else np.uint16)
    for one, (code, length) in enumerate(zip(canonical(lengths).tolist(), lengths.tolist())):
        if length:
            low, high = code << _LONGEST - length, code + 1 << _LONGEST - length
            width[low:high], symbol[low:high] = length, one
    return width, symbol
