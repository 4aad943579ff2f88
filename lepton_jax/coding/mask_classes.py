"""A static model for masks: one probability for each pair of a row's and a column's class of density, kept in the stream."""

import numpy as np

from lepton_jax.coding import rans
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError


def _density_classes(mask: np.ndarray, axis: int) -> np.ndarray:
    """A class for every row (axis 1) or column (axis 0): 0 where empty, then two an octave of the count."""
    counts = mask.sum(axis)
    fine = np.floor(2 * np.log2(np.maximum(counts, 1))).astype(np.uint8) + 1
    return np.where(counts > 0, fine, 0).astype(np.uint8)


def _pairs(row_classes: np.ndarray, column_classes: np.ndarray) -> tuple[int, np.ndarray]:
    """How many pairs of classes there are where neither is empty, and the number of each bit's pair, flat."""
    rows, row_rank = np.unique(row_classes[row_classes > 0], return_inverse=True)
    columns, column_rank = np.unique(column_classes[column_classes > 0], return_inverse=True)
    first = (row_rank * columns.size).astype(np.uint16)
    return rows.size * columns.size, (first[:, None] + column_rank.astype(np.uint16)[None, :]).reshape(-1)


def encode(writer: Writer, mask: np.ndarray) -> None:
    """Append the classes, the probabilities and the coded bits of a mask."""
    axes = [_density_classes(mask, 1), _density_classes(mask, 0)]
    for classes in axes:
        table = rans.frequencies(np.bincount(classes, minlength=64))
        rans.write_table(writer, table)
        rans.encode(writer, classes, table)
    bits = mask[np.ix_(axes[0] > 0, axes[1] > 0)].reshape(-1)
    pairs, place = _pairs(*axes)
    ones = np.bincount(place, weights=bits, minlength=pairs).astype(np.int64)
    p1 = np.clip((ones * 65536 + 32768) // np.maximum(np.bincount(place, minlength=pairs), 1), 1, 65535)
    writer.put(p1.astype("<u2").tobytes())
    rans.encode(writer, bits.astype(np.intp), np.stack([65536 - p1, p1], 1), place)


def decode(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    """Read the mask that `encode` wrote.

    Raises:
      ArtifactError: if the stream does not hold it.
    """
    axes = [rans.decode(reader, count, rans.read_table(reader, 64), "positions") for count in matrix]
    mask = np.zeros(matrix, bool)
    rows, columns = np.flatnonzero(axes[0]), np.flatnonzero(axes[1])
    pairs, place = _pairs(*axes)
    p1 = np.frombuffer(reader.take(2 * pairs), "<u2").astype(np.int64)
    if len(p1) and not p1.all():
        raise ArtifactError(f"a probability of 0 near offset {reader.offset}")
    table = np.stack([65536 - p1, p1], 1) if pairs else np.array([[65536, 0]])
    bits = rans.decode(reader, len(place), table, "positions", place)
    mask[np.ix_(rows, columns)] = bits.reshape(len(rows), len(columns))
    return mask
