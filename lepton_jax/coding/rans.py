"""Static coding of long symbol streams: asymmetric numeral systems with many states side by side, in plain numpy.

One state (lane) codes every L-th symbol, so that each step is a few array operations on L states; no compiled code is needed,
and every platform reads the same stream. Probabilities are integer frequencies that sum to 2**16, kept in the stream.

Source: J. Duda, "Asymmetric numeral systems", 2013, range variant; F. Giesen, "Interleaved entropy coders", 2014.
"""

import numpy as np

from lepton_jax.coding.streams import Reader, Writer, turns
from lepton_jax.core.errors import ArtifactError

_BITS = 16
_TOTAL = 1 << _BITS
_MAX_LANES = 1024
_TURNS_A_STEP = 4
_FEW = 16
"""So many symbols are found by comparing."""
_LOW = np.uint64(1 << 31)
_WORD = np.uint64(32)
_SHIFT = np.uint64(_BITS)


def frequencies(counts: np.ndarray) -> np.ndarray:
    """Scale counts to integers that sum to 2**16, at least 1 wherever there is a count.

    Args:
      counts: shape (..., alphabet), alphabet <= 2**15; each row is scaled by itself; an all-zero row becomes one sure symbol.

    Returns:
      int64, same shape.

    Example:
      >>> frequencies(np.array([3, 0, 1])).tolist()
      [49152, 0, 16384]
    """
    shape, counts = counts.shape, np.atleast_2d(counts).astype(np.int64)
    sure = counts.sum(-1) == 0
    counts[sure, 0] = 1
    total = counts.sum(-1, keepdims=True)
    scaled = np.maximum(counts * _TOTAL // total, counts > 0)
    for row in scaled:
        while excess := int(row.sum()) - _TOTAL:
            top = int(row.argmax())
            row[top] -= min(excess, int(row[top]) - 1) if excess > 0 else excess
    return scaled.reshape(shape)


def encode(writer: Writer, symbols: np.ndarray, table: np.ndarray, contexts: np.ndarray | None = None) -> None:
    """Append the coded symbols; the table is the caller's to store.

    Args:
      writer: where to.
      symbols: flat unsigned integers.
      table: frequencies, shape (alphabet,) or (contexts, alphabet), rows summing to 2**16.
      contexts: which row of the table each symbol is coded with.
    """
    table = np.atleast_2d(table)
    rows = np.zeros(len(symbols), np.intp) if contexts is None else contexts.astype(np.intp)
    start = (np.cumsum(table, -1) - table)[rows, symbols].astype(np.uint64)
    width = table[rows, symbols].astype(np.uint64)
    bits = float(_BITS * len(symbols) - np.log2(width.astype(np.float64)).sum())
    # More lanes are faster, and each costs some six bytes: together less than 0.1 % of the stream.
    lanes = int(min(6 + bits / 8 // 8192, max(len(symbols) // 512, 1), _MAX_LANES))
    while lanes < _MAX_LANES and -(-len(symbols) // lanes) > turns(int(max(8 * lanes, bits / 8))):
        lanes = min(2 * lanes, _MAX_LANES)
    states, words = np.full(lanes, _LOW), []
    for begin in range((max(len(symbols), 1) - 1) // lanes * lanes, -1, -lanes):
        f, c = width[begin : begin + lanes], start[begin : begin + lanes]
        x = states[: len(f)]
        full = x >= f << np.uint64(63 - _BITS)
        words.append((x[full] & np.uint64(0xFFFFFFFF)).astype("<u4"))
        x = np.where(full, x >> _WORD, x)
        states[: len(f)] = (x // np.maximum(f, np.uint64(1)) << _SHIFT) + x % np.maximum(f, np.uint64(1)) + c
    writer.number(lanes)
    body = np.concatenate(words[::-1]) if words else np.zeros(0, "<u4")
    writer.number(len(body))
    writer.put(states.astype("<u8").tobytes() + body.tobytes())


def decode(reader: Reader, count: int, table: np.ndarray, category: str, contexts: np.ndarray | None = None) -> np.ndarray:
    """Read `count` symbols that `encode` wrote with the same table and contexts.

    Raises:
      ArtifactError: if the stream does not hold them.
    """
    table = np.atleast_2d(table)
    lanes, length = reader.number(), reader.number()
    if not 1 <= lanes <= _MAX_LANES:
        raise ArtifactError(f"{lanes} coding lanes declared at offset {reader.offset}; 1 to {_MAX_LANES} are allowed")
    if -(-count // lanes) > turns(8 * lanes + 4 * length) and lanes < _MAX_LANES:
        raise ArtifactError(f"{count} symbols in {lanes} lanes and {length} words declared at offset {reader.offset}")
    reader.work(_TURNS_A_STEP * (2 - -count // lanes), "a coded stream")
    states = np.frombuffer(reader.take(8 * lanes, category), "<u8").astype(np.uint64)
    words = np.frombuffer(reader.take(4 * length, category), "<u4").astype(np.uint64)
    starts, widths = (np.cumsum(table, -1) - table).astype(np.uint64), table.astype(np.uint64)
    # A table of what each slot means pays only where many symbols share it.
    binary = table.shape[1] == 2
    compared = table.shape[1] <= _FEW and len(table) * _TOTAL > count * table.shape[1]
    lookup = (
        None if binary or compared else np.stack([np.repeat(np.arange(table.shape[1], dtype=np.uint16), row) for row in table])
    )
    ends = np.cumsum(table, -1)[:, :-1]
    out, used = np.empty(count, np.uint8 if table.shape[1] <= 256 else np.uint16), 0
    for begin in range(0, count, lanes):
        x = states[: min(lanes, count - begin)]
        slot = (x & np.uint64(_TOTAL - 1)).astype(np.intp)
        row = 0 if contexts is None else contexts[begin : begin + lanes]
        if binary:
            symbol = (slot >= table[row, 0]).astype(np.intp)
        elif lookup is None:
            symbol = (slot[:, None] >= ends[row]).sum(-1)
        else:
            symbol = lookup[row, slot].astype(np.intp)
        x = widths[row, symbol] * (x >> _SHIFT) + slot.astype(np.uint64) - starts[row, symbol]
        low = x < _LOW
        need = int(low.sum())
        if used + need > length:
            raise ArtifactError(f"a coded stream ends before its symbols, near offset {reader.offset}")
        x[low] = x[low] << _WORD | words[used : used + need]
        used += need
        states[: len(x)] = x
        out[begin : begin + lanes] = symbol
    if used != length or (states != _LOW).any():
        raise ArtifactError(f"a coded stream does not end as it was begun, near offset {reader.offset}")
    return out


def write_table(writer: Writer, table: np.ndarray) -> None:
    """Append one row of frequencies: lengths of runs of absent symbols, and the frequencies of those present."""
    absent = 0
    writer.number(len(table))
    for width in table.tolist():
        if width == 0:
            absent += 1
            continue
        writer.number(absent)
        writer.number(width)
        absent = 0


def read_table(reader: Reader, alphabet: int) -> np.ndarray:
    """Read what `write_table` wrote.

    Raises:
      ArtifactError: if the frequencies are not those of `alphabet` symbols or don't sum to 2**16.
    """
    if reader.number() != alphabet:
        raise ArtifactError(f"a table of probabilities near offset {reader.offset} is not for {alphabet} symbols")
    table, symbol = np.zeros(alphabet, np.int64), 0
    while table.sum() < _TOTAL:
        symbol += reader.number()
        if symbol >= alphabet:
            break
        table[symbol] = min(reader.number(), _TOTAL + 1)
        symbol += 1
    if table.sum() != _TOTAL:
        raise ArtifactError(f"a table of probabilities near offset {reader.offset} does not sum to {_TOTAL}")
    return table
