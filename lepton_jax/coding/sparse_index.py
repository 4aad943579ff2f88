"""Positions: where the non-zeros of a tensor are. Several coders compete, and the smallest output is kept.

A tensor is read as a matrix: its last axis gives the columns (output units), all others the rows (inputs). A stream is one byte
that names its coder, and what the coder needs:

* ``bits``: one bit an element; for masks without structure about half full.
* ``context``, ``rows``: adaptive models (`mask_bits`, `mask_rows`); nearly always the smallest where no structure is.
* ``classes``: a static model by densities of rows and columns (`mask_classes`).
* ``gaps``, ``lists``: distances in flat order, and row by row (`gaps`).
* ``groups``, ``blocks``: n of every m neighbours, whole blocks, repeated slices (`groups`).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from lepton_jax.coding import gaps, groups, mask_bits, mask_classes, mask_rows
from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.coding.rangecoder import decoded, encoded
from lepton_jax.coding.streams import Reader, Writer, turns
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.limits import cheap

CODERS = ("bits", "context", "classes", "rows", "gaps", "lists", "groups", "blocks")
_BITS, _CONTEXT, _CLASSES, _ROWS, _GAPS, _LISTS, _GROUPS, _BLOCKS = range(8)
# Up to as many bits the slow model is tried, from as many on the fast one.
_SLOW, _FAST = 1 << 15, 1 << 14
# A block mask that takes less than as many bits an element is not tried as another.
_FEW_BITS = 0.1
_CLASS_TURNS = 6


def _encode_bits(writer: Writer, mask: np.ndarray) -> None:
    writer.put(pack_bits(mask.reshape(-1), 1).tobytes())


def _decode_bits(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    size = matrix[0] * matrix[1]
    return unpack_bits(np.frombuffer(reader.take((size + 7) // 8, "positions"), np.uint8), 1, size).reshape(matrix) != 0


_STATIC: dict[int, tuple[Callable[..., None], Callable[[Reader, tuple[int, int]], np.ndarray]]] = {
    _BITS: (_encode_bits, _decode_bits),
    _CLASSES: (mask_classes.encode, mask_classes.decode),
    _GAPS: (gaps.encode_flat, gaps.decode_flat),
    _LISTS: (gaps.encode_rows, gaps.decode_rows),
    _GROUPS: (groups.encode_groups, groups.decode_groups),
}
"""The coders that need nothing but the mask: (encode, decode)."""


class Hints:
    """Which units earlier tensors left alive, by their number: a later tensor's rows and columns tend to agree.

    A unit without inputs has no bias and no outputs, so a mask's columns foretell the next mask's rows.

    Args:
      quick: leave out coders that are slow to decode.
      before: hints to begin with.
    """

    def __init__(self, quick: bool = False, before: "Hints | None" = None) -> None:
        self.quick = quick
        self._alive: dict[int, np.ndarray] = dict(before._alive) if before is not None else {}

    def remember(self, alive: np.ndarray) -> None:
        """Keep the flags of the units that a tensor's last axis counts."""
        if alive.size > 1:
            self._alive[alive.size] = alive.astype(np.uint8)

    def recall(self, count: int) -> list[int]:
        """The flags of as many units or, for the rows of a flattened image, of the most units that divide them."""
        told = self.told(count)
        return np.tile(told, count // told.size).tolist() if told.size else [2] * count

    def told(self, count: int) -> np.ndarray:
        """The flags of the most units that divide a count; empty if there are none."""
        size = max((size for size in self._alive if count and count % size == 0), default=0)
        return self._alive[size] if size else np.zeros(0, np.uint8)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows (all axes but the last) and columns."""
    return (int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]) if shape else (1, 1)


def find_lag(mask: np.ndarray) -> int:
    """Return how many rows before lies the neighbour above: where non-zeros of a column coincide most, beyond chance."""
    rows = mask.shape[0]
    candidates = range(mask_bits.REACH + 1, min(rows // 2, 512) + 1)
    counts = mask.sum(1, dtype=np.float64) / max(mask.shape[1], 1)
    packed = np.packbits(mask, axis=1)

    def excess(lag: int) -> float:
        both = int(np.bitwise_count(packed[lag:] & packed[:-lag]).sum(dtype=np.int64))
        return both - float(counts[lag:] @ counts[:-lag]) * mask.shape[1]

    best = max(candidates, key=excess, default=1)
    return best if best > 1 and excess(best) > 0 else 1


def encode(mask: np.ndarray, lag: int, hints: Hints, structured: bool = True) -> Writer:
    """Code where a mask is set; the coders compete.

    Args:
      mask: boolean, shape (rows, columns).
      lag: see `find_lag`; the caller stores it.
      hints: what earlier tensors tell.
      structured: whether to look for blocks.
    """
    candidates = _encode_blocks(mask, hints.quick) if structured and mask.size else []
    if candidates and len(candidates[0]) * 8 < _FEW_BITS * mask.size:
        return candidates[0]
    candidates.append(_written(_BITS, mask))
    found = groups.find_groups(mask)
    if found is not None:
        candidates.append(Writer(_GROUPS))
        groups.encode_groups(candidates[-1], mask, *found, quick=hints.quick)
    if np.count_nonzero(mask) * 8 <= mask.size:
        candidates += [_written(coder, mask, quick=hints.quick) for coder in (_GAPS, _LISTS)]
    return min(candidates + _adaptive(mask, lag, hints), key=len)


def _written(coder: int, mask: np.ndarray, **options: bool) -> Writer:
    writer = Writer(coder)
    _STATIC[coder][0](writer, mask, **options)
    return writer


def _adaptive(mask: np.ndarray, lag: int, hints: Hints) -> list[Writer]:
    """The streams of the models that fit a mask of this size."""
    size, out = int(mask.any(1).sum() * mask.any(0).sum()), []
    known = hints.recall(mask.shape[0]), hints.recall(mask.shape[1])
    if size <= _SLOW and not hints.quick and max(mask.shape) <= mask_bits.CONTEXT_LIMIT:
        stream = encoded(lambda coder: mask_bits.code_mask(coder, mask, mask.shape, lag, known))
        if max(size, sum(mask.shape)) <= turns(len(stream)):
            out.append(Writer(_CONTEXT))
            out[-1].block(stream)
    for told in (False, True) if size >= _FAST else ():
        stream = encoded(partial(mask_rows.code_mask, mask=mask, matrix=mask.shape, lag=lag, hints=known, told=told))
        slow = hints.quick and _work_of_rows(mask.shape, told) > cheap(len(stream))
        if _turns_of_rows(mask.shape) <= turns(len(stream)) and not slow:
            out.append(Writer(_ROWS, bytes([told])))
            out[-1].block(stream)
    return [*out, _written(_CLASSES, mask)] if size >= _FAST and not hints.quick else out


def _turns_of_rows(matrix: tuple[int, ...]) -> int:
    """What the row model takes; its inner loop is many times faster than the outer."""
    return max(sum(matrix), matrix[0] * matrix[1] // 16)


def _work_of_rows(matrix: tuple[int, ...], told: bool) -> int:
    """The same in turns of the slow loop: one a column, one or six a row, and one for as many bits of the mask as it takes.

    A bit takes 0.6 to 0.8 microseconds, a turn eight.
    """
    return matrix[1] + (_CLASS_TURNS if told else 1) * matrix[0] + matrix[0] * matrix[1] // 14


def decode(reader: Reader, matrix: tuple[int, int], lag: int, hints: Hints, structured: bool = True) -> np.ndarray:
    """Read a mask of `matrix` = (rows, columns) bits that `encode` wrote.

    Raises:
      ArtifactError: if the stream does not hold it.
    """
    coder, (rows, columns) = reader.coder(CODERS, "positions"), matrix
    if not 1 <= lag <= max(rows // 2, 1):
        raise ArtifactError(f"a neighbour {lag} rows before in a matrix of {rows} rows, near offset {reader.offset}")
    if coder in _STATIC:
        return _STATIC[coder][1](reader, matrix)
    if coder == _ROWS or (coder == _CONTEXT and max(matrix) <= mask_bits.CONTEXT_LIMIT):
        told, stream = coder == _ROWS and reader.take(1) != b"\0", reader.block("positions")
        most, known = turns(len(stream)), (hints.recall(rows), hints.recall(columns))
        if (_turns_of_rows(matrix) if coder == _ROWS else rows + columns) > most:
            raise ArtifactError(f"{rows} x {columns} positions in {len(stream)} bytes declared near offset {reader.offset}")
        reader.work(_work_of_rows(matrix, told) if coder == _ROWS else rows + columns, "positions")
        if coder == _ROWS:
            return decoded(stream, lambda source: mask_rows.code_mask(source, None, matrix, lag, known, told))
        ask = partial(reader.work, what="positions")
        return decoded(stream, lambda source: mask_bits.code_mask(source, None, matrix, lag, known, most, ask))
    if coder == _BLOCKS and structured:
        return _decode_blocks(reader, matrix)
    raise ArtifactError(f"positions of {rows} x {columns} cannot be coded by {CODERS[coder]}, near offset {reader.offset}")


def _encode_blocks(mask: np.ndarray, quick: bool = False) -> list[Writer]:
    """The stream of a mask of blocks or repeated slices, if it is one."""
    times = groups.find_repeats(mask)
    once = mask[: mask.shape[0] // times]
    height, width = groups.find_blocks(once)
    if times * height * width == 1:
        return []
    writer, inner = Writer(_BLOCKS), once[::height, ::width]
    lag = find_lag(inner)
    for number in (times, height, width, lag):
        writer.number(number)
    writer.put(encode(inner, lag, Hints(quick), structured=False).data)
    return [writer]


def _decode_blocks(reader: Reader, matrix: tuple[int, int]) -> np.ndarray:
    times, height, width, lag = (reader.number() for _ in range(4))
    if times < 1 or matrix[0] % times or not 1 <= height <= matrix[0] or not 1 <= width <= matrix[1] or not 1 <= lag <= 4096:
        raise ArtifactError(f"{times} times blocks of {height} x {width} in {matrix}, near offset {reader.offset}")
    once = (matrix[0] // times, matrix[1])
    grid = (-(-once[0] // height), -(-once[1] // width))
    blocks = decode(reader, grid, lag, Hints(), structured=False)
    return np.tile(groups.spread(blocks, height, width, once), (times, 1))
