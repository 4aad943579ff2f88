"""Positions as distances: from one non-zero to the next in flat order, or row by row as in a compressed sparse row matrix.

Distances are symbols below 256; 255 stands for 255 places without a non-zero, and the distance goes on (the padding zeros of
the paper on deep compression, of 8 bits). Their stream is coded as any other (Huffman, asymmetric numeral systems, mixing).

Source: S. Han, H. Mao and W. J. Dally, "Deep compression", 2016, section 2 (relative index).
"""

import numpy as np

from lepton_jax.coding import symbols
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError

_SKIP = 255


def put_numbers(writer: Writer, numbers: np.ndarray, quick: bool = False) -> None:
    """Append a stream of non-negative integers, most of them small; if `quick`, by what is quick to decode."""
    skips = numbers // _SKIP
    ends = np.cumsum(skips + 1)
    stream = np.full(int(ends[-1]) if ends.size else 0, _SKIP, np.uint8)
    stream[ends - 1] = numbers % _SKIP
    alphabet = int(stream.max(initial=0)) + 1
    writer.number(stream.size)
    writer.put(bytes([alphabet - 1]))
    writer.put(symbols.encode(stream, alphabet, quick=quick).data)


def take_numbers(reader: Reader, limit: int) -> np.ndarray:
    """Read what `put_numbers` wrote, as int64.

    Raises:
      ArtifactError: if there are more than `limit`, the 255s included.
    """
    count = reader.number()
    if count > limit:
        raise ArtifactError(f"{count} distances declared at offset {reader.offset}; at most {limit} are possible")
    stream = symbols.decode(reader, count, reader.take(1)[0] + 1, category="positions")
    reader.work(count // 8, "distances")  # each takes room for several integers; no stream that pays has so many in a byte
    ends = np.flatnonzero(stream != _SKIP)
    if stream.size and (not ends.size or ends[-1] != stream.size - 1):
        raise ArtifactError(f"a stream of distances ends within one, near offset {reader.offset}")
    return np.diff(ends, prepend=-1) * _SKIP - _SKIP + stream[ends]


def encode_flat(writer: Writer, mask: np.ndarray, quick: bool = False) -> None:
    """Append the gaps of a mask, in flat order."""
    put_numbers(writer, np.diff(np.flatnonzero(mask), prepend=-1) - 1, quick)


def decode_flat(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    """Read the mask that `encode_flat` wrote."""
    size = matrix[0] * matrix[1]
    places = np.cumsum(take_numbers(reader, size) + 1) - 1
    if places.size and places[-1] >= size:
        raise ArtifactError(f"a position beyond the tensor's {size}, near offset {reader.offset}")
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask.reshape(matrix)


def encode_rows(writer: Writer, mask: np.ndarray, quick: bool = False) -> None:
    """Append how many non-zeros each row has, and their distances within the row."""
    counts = mask.sum(1)
    columns = np.nonzero(mask)[1]
    before = np.concatenate([[-1], columns[:-1]]) if columns.size else columns
    before[(np.cumsum(counts) - counts)[counts > 0]] = -1
    put_numbers(writer, counts, quick)
    put_numbers(writer, columns - before - 1, quick)


def decode_rows(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    """Read the mask that `encode_rows` wrote."""
    rows, columns = matrix
    counts = take_numbers(reader, rows + rows * columns // _SKIP)
    steps = take_numbers(reader, rows * columns) + 1
    if counts.size != rows or counts.sum() != steps.size:
        raise ArtifactError(f"rows of {counts.sum()} positions and {steps.size} of them, near offset {reader.offset}")
    walked = np.cumsum(steps)
    first = (np.cumsum(counts) - counts)[counts > 0]
    begun = np.repeat(walked[first] - steps[first], counts[counts > 0])
    places = walked - begun - 1
    if places.size and places.max() >= columns:
        raise ArtifactError(f"a position beyond a row of {columns}, near offset {reader.offset}")
    mask = np.zeros(matrix, bool)
    mask[np.repeat(np.arange(rows), counts), places] = True
    return mask
