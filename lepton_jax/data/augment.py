"""Affine and elastic augmentation, cheap enough for every epoch: a bank of sparse warps, applied by products.

A bilinear warp is linear in the image: ``warped = W @ image`` with a sparse ``W`` of at most four entries a row. A bank of
them is computed once; an epoch's images are dealt out over the bank, and each warp serves its images by one product.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import scipy.sparse

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect


@checked
@dataclass(frozen=True, kw_only=True)
class Warp:
    """Say how strongly images are deformed; the defaults suit handwritten digits of 28 x 28 pixels.

    Every warp of the bank draws its own angle, scales, shear, shifts and displacement field; 0 leaves one of them out.

    Args:
      rotation_degrees: the angle is uniform in plus or minus this.
      scale: each axis is stretched by a factor uniform in ``1 - scale`` to ``1 + scale``.
      shear: the horizontal shift for each unit of height is uniform in plus or minus this.
      shift_pixels: each axis is moved by a distance uniform in plus or minus this, in pixels.
      elastic_alpha: root mean square of the elastic displacement along each axis, in pixels.
      elastic_sigma: how smooth that displacement is: standard deviation of its Gaussian filter, in pixels.
      count: how many warps the bank has.

    Raises:
      ValueError: with every setting that is out of range.

    Example:
      >>> Warp(scale=1.5)
      Traceback (most recent call last):
      ...
      ValueError: Warp:
        scale: must be in [0, 1); got 1.5

    Source: P. Simard, D. Steinkraus and J. Platt, Best practices for convolutional neural networks applied to visual document
    analysis, 2003, section 2. Deviation: `elastic_alpha` is the displacement's root mean square, so that it is in pixels.
    """

    rotation_degrees: float = 10.0
    scale: float = 0.1
    shear: float = 0.1
    shift_pixels: float = 1.0
    elastic_alpha: float = 1.0
    elastic_sigma: float = 4.0
    count: int = 256

    def __post_init__(self) -> None:
        with collect("Warp") as problems:
            for name in ("rotation_degrees", "shear", "shift_pixels", "elastic_alpha"):
                if not getattr(self, name) >= 0:
                    problems.append(f"{name}: must be 0 or more; got {getattr(self, name)}")
            if not 0 <= self.scale < 1:
                problems.append(f"scale: must be in [0, 1); got {self.scale}")
            if not self.elastic_sigma > 0:
                problems.append(f"elastic_sigma: must be above 0; got {self.elastic_sigma}. elastic_alpha=0 leaves it out")
            if self.count < 1:
                problems.append(f"count: must be 1 or more; got {self.count}. No augmentation is no bank at all")


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class WarpBank:
    """Hold precomputed warps of one image size; made by `warp_bank`.

    Args:
      shape: ``(H, W)`` of the images.
      warps: float32 CSR matrices ``[H * W, H * W]``.

    Example:
      >>> bank = warp_bank(Warp(count=2), (8, 8), seed=0)
      >>> bank.shape, len(bank.warps), bank.warps[0].shape
      ((8, 8), 2, (64, 64))
    """

    shape: tuple[int, int]
    warps: tuple[scipy.sparse.csr_array, ...]


@checked
def warp_bank(warp: Warp, shape: tuple[int, int], *, seed: int) -> WarpBank:
    """Draw the warps of a bank.

    Args:
      warp: the settings.
      shape: ``(H, W)`` of the images, in pixels.
      seed: equal seeds give equal banks.

    Returns:
      The bank; each warp samples bilinearly, with zeros outside the image.

    Example:
      >>> bank = warp_bank(Warp(count=3), (8, 8), seed=0)
      >>> len(bank.warps), bank.warps[0].shape
      (3, (64, 64))
    """
    rng = np.random.default_rng([seed, 1])
    return WarpBank(shape=shape, warps=tuple(_bilinear(_coordinates(warp, shape, rng)) for _ in range(warp.count)))


@checked
def augment_epoch(images: np.ndarray, bank: WarpBank, *, seed: int, epoch: int) -> np.ndarray:
    """Warp the images of one epoch.

    Image i gets warp ``order[i % count]``, with an order drawn anew each epoch: give the images shuffled, as `shuffled` does,
    and every batch sees many warps and every image another one each time.

    Args:
      images: float32 ``[N, H, W, C]``.
      bank: of the same H and W.
      seed: of the run.
      epoch: from 0.

    Returns:
      float32 ``[N, H, W, C]``, a pure function of the arguments.

    Raises:
      ValueError: if the bank is for another image size.

    Example:
      >>> bank = warp_bank(Warp(count=2), (8, 8), seed=0)
      >>> augment_epoch(np.ones((5, 8, 8, 3), np.float32), bank, seed=0, epoch=0).shape
      (5, 8, 8, 3)
    """
    if images.ndim != 4 or images.shape[1:3] != bank.shape:
        raise ValueError(f"the bank warps images [N, {bank.shape[0]}, {bank.shape[1]}, C]; got shape {images.shape}.")
    channels, count = images.shape[3], len(bank.warps)
    order = np.random.default_rng([seed, epoch, 1]).permutation(count)
    warped = np.empty_like(images)
    for group, index in enumerate(order[: len(images)]):
        chosen = images[group::count]
        pixels = np.moveaxis(chosen, 0, 2).reshape(bank.shape[0] * bank.shape[1], -1)
        result = (bank.warps[index] @ pixels).reshape(*bank.shape, len(chosen), channels)
        warped[group::count] = np.moveaxis(result, 2, 0)
    return warped


def _coordinates(warp: Warp, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return ``[2, H, W]``: for every output pixel, the row and column in the input that it samples."""
    angle, shear = np.radians(rng.uniform(-1, 1) * warp.rotation_degrees), rng.uniform(-1, 1) * warp.shear
    stretch, shift = 1 + rng.uniform(-1, 1, 2) * warp.scale, rng.uniform(-1, 1, 2) * warp.shift_pixels
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1.0, 0.0], [shear, 1.0]]) @ np.diag(1 / stretch)
    grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")).astype(float)
    centre = (np.array(shape).reshape(2, 1, 1) - 1) / 2
    affine = np.einsum("ij,jhw->ihw", matrix, grid - centre) + centre - shift.reshape(2, 1, 1)
    noise = rng.standard_normal((2, *shape))
    if warp.elastic_alpha == 0:
        return affine
    smooth = scipy.ndimage.gaussian_filter(noise, sigma=(0, warp.elastic_sigma, warp.elastic_sigma), mode="constant")
    return affine + smooth * (warp.elastic_alpha / np.sqrt(np.mean(smooth**2)))


def _bilinear(coordinates: np.ndarray) -> scipy.sparse.csr_array:
    """Return the sparse matrix that samples an image at `coordinates`; what lies outside counts as zero."""
    height, width = coordinates.shape[1:]
    low = np.floor(coordinates).astype(int)
    fraction = coordinates - low
    rows, columns, values = [], [], []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = low[0] + down, low[1] + right
        value = np.abs(1 - down - fraction[0]) * np.abs(1 - right - fraction[1])
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width) & (value > 0)
        rows.append(np.flatnonzero(inside))
        columns.append((r * width + c)[inside])
        values.append(value[inside])
    entries = np.concatenate(values).astype(np.float32)
    size = height * width
    return scipy.sparse.csr_array((entries, (np.concatenate(rows), np.concatenate(columns))), shape=(size, size))
