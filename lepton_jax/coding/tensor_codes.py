"""A tensor of codes: where one code makes up most of it (the pruned weights), positions and the other codes are coded apart."""

import math

import numpy as np

from lepton_jax.coding import sparse_index, symbols
from lepton_jax.coding.sparse_index import Hints, find_lag, matrix_shape
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError

_HOLE_SHARE = 0.5


def encode(codes: np.ndarray, alphabet: int, shape: tuple[int, ...], hints: Hints, holes: bool = True) -> Writer:
    """Code a tensor of codes losslessly.

    Args:
      codes: flat unsigned integers below `alphabet`.
      alphabet: at most 256.
      shape: the tensor's, whose rows and columns serve as contexts.
      hints: what earlier tensors tell.
      holes: whether one frequent code may be coded as positions.

    Returns:
      The shortest stream found.
    """
    top = int(np.bincount(codes, minlength=alphabet).argmax())
    kept = codes != top
    if not holes or not kept.any() or np.count_nonzero(kept) >= (1 - _HOLE_SHARE) * codes.size:
        return symbols.encode(codes, alphabet, np.ones(matrix_shape(shape), bool), quick=hints.quick)
    kept = kept.reshape(matrix_shape(shape))
    lag, writer = find_lag(kept), Writer(symbols.HOLES, bytes([top]))
    writer.number(lag)
    writer.put(sparse_index.encode(kept, lag, hints).data)
    rest = codes[kept.reshape(-1)]
    if alphabet > 2:
        writer.put(symbols.encode(rest - (rest > top), alphabet - 1, kept, lag, quick=hints.quick).data)
    return min(symbols.encode_bits(codes, alphabet), writer, key=len)


def decode(reader: Reader, alphabet: int, shape: tuple[int, ...], hints: Hints, category: str = "values") -> np.ndarray:
    """Read the codes of a tensor that `encode` wrote; flat, of dtype uint8.

    Raises:
      ArtifactError: if the stream is not of this alphabet or shape.
    """
    matrix = matrix_shape(shape)
    if reader.peek() != symbols.HOLES:
        # The matrix matters to few coders, and a view of one element has every shape.
        return symbols.decode(reader, math.prod(matrix), alphabet, np.broadcast_to(np.True_, matrix), 1, category)
    reader.coder(symbols.CODERS, category)
    top, lag = reader.take(1)[0], reader.number()
    if top >= alphabet:
        raise ArtifactError(f"symbol {top} of {alphabet} at offset {reader.offset}")
    kept = sparse_index.decode(reader, matrix, lag, hints)
    codes = np.full(kept.size, top, np.uint8)
    rest = np.zeros(int(kept.sum()), np.uint8)
    if alphabet > 2:
        rest = symbols.decode(reader, rest.size, alphabet - 1, kept, lag, category)
    codes[kept.reshape(-1)] = rest + (rest >= top)
    return codes
