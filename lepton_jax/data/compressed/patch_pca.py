"""Images with a loss that is chosen: principal components of their patches, coefficients quantized and entropy-coded."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lepton_jax.coding import symbols
from lepton_jax.coding.compression import compress, decompress
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError, check_whole

_MAX_LENGTH = 1 << 14
# Patches by which the step is chosen.
_SAMPLE = 1 << 14
# Multiplications that take as long as a turn of a slow loop.
_PRODUCTS_A_TURN = 1 << 15


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchPCA:
    """Keep a fraction of the images' variance.

    Images are cut into patches; with the patches' mean m and the principal components b_1, b_2, ... of their covariance,

        x ~ m + sum_{j <= rank} b_j step round(b_j . (x - m) / step),

    with the smallest rank for which ``sum |x - x_coded|^2 <= (1 - energy) sum |x - m|^2`` over all patches, the error of
    rounding coefficients counted; images of integers are rounded again after that. One step for all components spreads the
    error evenly, and components of little variance take few bits.

    Args:
      patch: side of the square patches in pixels; images are continued at their edges to a multiple of it.
      energy: the fraction kept, in (0, 1).
      bits: of the largest coefficient, 2 to 16; the others have the same step. None: the step that gives the smallest file.

    Raises:
      ValueError: for settings out of range.

    Example:
      >>> PatchPCA(patch=4, energy=0.95)
      PatchPCA(patch=4, energy=0.95, bits=None)

    Source: Pearson 1901 (the components); Jayant and Noll 1984, "Digital coding of waveforms", chapter 12 (one step for all).
    """

    patch: int = 8
    energy: float = 0.99
    bits: int | None = None

    def __post_init__(self) -> None:
        check_whole("PatchPCA: patch", self.patch, 1, 64)
        if self.bits is not None:
            check_whole("PatchPCA: bits", self.bits, 2, 16)
        if not 0 < self.energy < 1:
            raise ValueError(f"PatchPCA: energy must be in (0, 1), the fraction of the variance kept; got {self.energy}.")


class Basis(NamedTuple):
    """What all patches of an array share.

    Args:
      patch: side of the patches.
      mean: float32 ``[patch * patch * channels]``.
      components: float16 ``[rank, patch * patch * channels]``.
      step: of the coefficients.
      kept: the fraction of the variance that is kept; not stored.
    """

    patch: int
    mean: np.ndarray
    components: np.ndarray
    step: float
    kept: float = math.nan


def fit(images: np.ndarray, codec: PatchPCA, blocks: Iterable[slice], name: str = "images") -> Basis:
    """Find the components, the step and the rank.

    Args:
      images: real numbers ``[N, H, W, C]``.
      codec: the settings.
      blocks: which images to take at a time; gone over three times.
      name: of the array, for messages.

    Raises:
      ValueError: for other arrays, or if the step is too coarse for the energy.
    """
    if images.ndim != 4 or images.dtype.kind not in "iuf":
        raise ValueError(f"PatchPCA: {name}: needs real images [N, H, W, C]; got {images.dtype} of shape {images.shape}.")
    length = codec.patch**2 * images.shape[3]
    if not images.size or length > _MAX_LENGTH:
        raise ValueError(f"PatchPCA: {name}: {images.size} numbers in patches of {length}; 1 up, and up to {_MAX_LENGTH}.")
    blocks = list(blocks)
    mean, covariance = _moments(images, codec.patch, blocks, name)
    basis = np.linalg.eigh(covariance)[1][:, ::-1].T.astype(np.float16)
    wide = basis.astype(np.float64)
    largest = max(float(np.abs((_patches(images[b], codec.patch) - mean) @ wide.T).max()) for b in blocks) or 1.0
    if codec.bits is None:
        levels = _levels_by_size(images, codec, mean, wide, largest)
    else:
        levels = [2.0 ** (codec.bits - 1) - 1]
    best = 0.0
    for number in levels:
        # As it is stored, so that what is measured here is what is decoded.
        step = float(np.float32(largest / number))
        error = _errors((_patches(images[b], codec.patch) - mean for b in blocks), wide, step)
        enough = error <= (1 - codec.energy) * error[0]
        if enough.any():
            rank = int(enough.argmax())
            kept = 1 - float(error[rank] / error[0]) if error[0] else 1.0
            return Basis(codec.patch, mean.astype(np.float32), basis[:rank], step, kept)
        best = max(best, 1 - float(error.min() / error[0]))
    raise ValueError(
        f"PatchPCA: {name}: bits={codec.bits} keeps at most {best:.5f} of the variance, less than energy={codec.energy}; "
        "give more bits, or ask for less."
    )


def _errors(centred: Iterable[np.ndarray], basis: np.ndarray, step: float) -> np.ndarray:
    """Return ``sum |x - sum_{j <= rank} b_j c_j|^2`` of the rounded coefficients c, for the ranks 0, 1, ..., all."""
    total, products, moments = 0.0, np.zeros(len(basis)), np.zeros((len(basis), len(basis)))
    for patches in centred:
        coefficients = patches @ basis.T
        coded = np.rint(coefficients / step) * step
        total += float(np.square(patches).sum())
        products += (coded * coefficients).sum(0)
        moments += coded.T @ coded
    # By the Gram matrix, since the components, rounded to float16, are not quite orthogonal.
    gram = moments * (basis @ basis.T)
    return np.concatenate([[total], total - 2 * np.cumsum(products) + np.diagonal(np.cumsum(np.cumsum(gram, 0), 1))])


def _levels_by_size(images: np.ndarray, codec: PatchPCA, mean: np.ndarray, basis: np.ndarray, largest: float) -> list[float]:
    """Return numbers of levels, that of the smallest file first, by the entropy of some of the images' coefficients."""
    grid = -(-images.shape[1] // codec.patch) * -(-images.shape[2] // codec.patch)
    some = np.unique(np.linspace(0, len(images) - 1, max(1, min(len(images), _SAMPLE // grid))).astype(int))
    patches = _patches(images[some], codec.patch) - mean
    coefficients, share = patches @ basis.T, len(images) / len(some)
    sizes = {}
    for half_bits in range(2, 31):
        levels = 2.0 ** (half_bits / 2)
        step = largest / levels
        error = _errors([patches], basis, step)
        enough = error <= (1 - codec.energy) * error[0]
        if enough.any():
            rank = int(enough.argmax())
            coded = np.rint(coefficients[:, :rank] / step).astype(np.int64)
            bits = sum(len(column) * symbols.entropy(np.unique(column, return_counts=True)[1]) for column in coded.T)
            sizes[levels] = share * bits + 16 * len(mean) * rank
            if sizes[levels] > 1.5 * min(sizes.values()):
                break
    # What suffices for a sample may not do for all: the finest is the last resort.
    return [*sorted(sizes, key=sizes.__getitem__), 2.0**15 - 1]


def encode(block: np.ndarray, basis: Basis) -> bytes:
    """Code some images."""
    coefficients = (_patches(block, basis.patch) - basis.mean) @ basis.components.astype(np.float64).T
    steps = np.rint(coefficients / basis.step).astype(np.int32)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    writer = Writer()
    for group in _groups(folded.shape[1]):
        together = folded[:, group].T.reshape(-1)
        writer.put(symbols.encode(together & 255, 256).data)
        writer.put(symbols.encode(together >> 8, 256).data)
    return bytes(writer.data)


def decode(reader: Reader, shape: tuple[int, ...], dtype: np.dtype, basis: Basis) -> np.ndarray:
    """Read images that `encode` wrote.

    Raises:
      ArtifactError: if the stream does not hold them.
    """
    count = shape[0] * math.prod(-(-side // basis.patch) for side in shape[1:3])
    rank, length = basis.components.shape
    # Coefficients and patches, each in two stages of single precision; their product.
    reader.memory(8 * count * (rank + length), f"{count} patches of {length} numbers, {rank} coefficients each,")
    reader.work(count * rank * length // _PRODUCTS_A_TURN, f"{count} patches of {length} numbers")
    coefficients = np.empty((count, len(basis.components)), np.float32)
    for group in _groups(len(basis.components)):
        size = count * (group.stop - group.start)
        low = symbols.decode(reader, size, 256).astype(np.int32)
        folded = low | symbols.decode(reader, size, 256).astype(np.int32) << 8
        steps = np.where(folded & 1, -(folded >> 1) - 1, folded >> 1)
        coefficients[:, group] = steps.reshape(-1, count).T * np.float32(basis.step)
    with np.errstate(all="ignore"):
        values = _images(coefficients @ basis.components.astype(np.float32) + basis.mean, shape, basis.patch)
        if not np.isfinite(values).all():
            raise ArtifactError(f"numbers that are not finite near offset {reader.offset}")
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(dtype)
        return values.astype(dtype)


def _groups(rank: int) -> list[slice]:
    """Components that share a table: the first four have their own, later ones, alike in variance, ever more together."""
    ends = [0, 1, 2, 3]
    while ends[-1] < rank:
        ends.append(ends[-1] + max(1, 1 << ends[-1].bit_length() - 2))
    return [slice(a, min(b, rank)) for a, b in itertools.pairwise(ends) if a < rank]


def write_basis(basis: Basis) -> bytes:
    """Return the bytes of a basis, for the file's head."""
    writer = Writer()
    writer.number(basis.patch)
    writer.number(len(basis.mean))
    writer.number(len(basis.components))
    writer.put(np.float32(basis.step).tobytes())
    codec, stored = compress(basis.mean.astype("<f4").tobytes() + basis.components.astype("<f2").tobytes())
    writer.put(bytes([codec]))
    writer.block(stored)
    return bytes(writer.data)


def read_basis(reader: Reader, channels: int) -> Basis:
    """Read what `write_basis` wrote.

    Raises:
      ArtifactError: if the bytes are not those of a basis for images of so many channels.
    """
    patch, length, rank = reader.number(), reader.number(), reader.number()
    if not 1 <= patch <= 64 or length != patch * patch * channels or length > _MAX_LENGTH or rank > length:
        raise ArtifactError(f"a basis of {rank} components for patches of {patch} pixels near offset {reader.offset}")
    step = float(np.frombuffer(reader.take(4), "<f4")[0])
    if not (math.isfinite(step) and step > 0):
        raise ArtifactError(f"a basis with steps of {step} near offset {reader.offset}")
    reader.memory(8 * length * (rank + 1), f"a basis of {rank} components for patches of {length} numbers")
    codec = reader.take(1)[0]
    data = decompress(codec, reader.block("codebook"), 4 * length + 2 * length * rank)
    mean = np.frombuffer(data, "<f4", length)
    return Basis(patch, mean, np.frombuffer(data, "<f2", length * rank, 4 * length).reshape(rank, length), step)


def _patches(images: np.ndarray, side: int) -> np.ndarray:
    """float64 ``[N * patches, side * side * C]``; edges continued."""
    count, height, width, channels = images.shape
    down, right = -height % side, -width % side
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, down), (0, right), (0, 0)), "edge")
    cut = padded.reshape(count, (height + down) // side, side, (width + right) // side, side, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side * channels)


def _images(patches: np.ndarray, shape: tuple[int, ...], side: int) -> np.ndarray:
    """Undo `_patches`."""
    count, height, width, channels = shape
    rows, columns = -(-height // side), -(-width // side)
    cut = patches.reshape(count, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(count, rows * side, columns * side, channels)[:, :height, :width]


def _moments(images: np.ndarray, side: int, blocks: list[slice], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scatter matrix of all patches."""
    length = side * side * images.shape[3]
    count, total, squares = 0, np.zeros(length), np.zeros((length, length))
    for b in blocks:
        patches = _patches(images[b], side)
        if not np.isfinite(patches).all():
            raise ValueError(f"PatchPCA: {name}: must be finite, but images {b.start} to {b.stop - 1} have a NaN or infinity.")
        count, total, squares = count + len(patches), total + patches.sum(0), squares + patches.T @ patches
    mean = (total / count).astype(np.float32).astype(np.float64)
    return mean, squares - count * np.outer(mean, mean)
