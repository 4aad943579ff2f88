"""Batches that are a pure function of (seed, step): a resumed run needs no replay."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.augment import WarpBank, augment_epoch
from lepton_jax.data.dataset import Split


class Batch(NamedTuple):
    """Hold one batch, a pytree that goes straight into a jitted function.

    Args:
      images: float32 ``[B, H, W, C]``.
      labels: int32 ``[B]``.
      mask: bool ``[B]``, False for the padding of the last evaluation batch.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


@checked
def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Count the whole batches of an epoch; what is left over comes in other epochs, since each is shuffled anew.

    Raises:
      ValueError: if not even one batch fits.

    Example:
      >>> steps_per_epoch(Split(images=np.zeros((10, 2, 2, 1), np.float32), labels=np.zeros(10, np.int32)), 4)
      2
    """
    if len(split) == 0:
        raise ValueError("the split has no examples to train on; give it some.")
    if not 1 <= batch_size <= len(split):
        raise ValueError(f"batch_size must be in 1 to {len(split)}, the number of examples; got {batch_size}.")
    return len(split) // batch_size


@checked
def shuffled(split: Split, *, seed: int, epoch: int, warps: WarpBank | None = None) -> Split:
    """Return the split in the order of one epoch, augmented if a bank of warps is given.

    Args:
      split: the examples.
      seed: of the run.
      epoch: from 0; every epoch has its own order and its own warps.
      warps: as `warp_bank` made them.

    Returns:
      A split of the same examples, a pure function of the arguments.

    Example:
      >>> split = Split(images=np.zeros((4, 2, 2, 1), np.float32), labels=np.arange(4, dtype=np.int32))
      >>> sorted(shuffled(split, seed=0, epoch=3).labels.tolist())
      [0, 1, 2, 3]
    """
    order = np.random.default_rng([seed, epoch, 0]).permutation(len(split))
    ordered = split.take(order)
    if warps is None:
        return ordered
    return Split(images=augment_epoch(ordered.images, warps, seed=seed, epoch=epoch), labels=ordered.labels)


@checked
def batches(split: Split, batch_size: int, *, seed: int, start_step: int = 0, warps: WarpBank | None = None) -> Iterator[Batch]:
    """Yield the batches of steps `start_step`, `start_step` + 1, ... without end.

    Step k has the rows ``[r * B, (r + 1) * B)`` of epoch ``k // n``, with ``r = k % n`` and n from `steps_per_epoch`.

    Args:
      split: the examples.
      batch_size: B.
      seed: of the run.
      start_step: where to begin; a run resumed at step k gets what an uninterrupted one got.
      warps: augmentation, as `warp_bank` made it.

    Raises:
      ValueError: if the split has fewer than B examples, or `start_step` is negative.

    Example:
      >>> split = Split(images=np.zeros((5, 2, 2, 1), np.float32), labels=np.arange(5, dtype=np.int32))
      >>> stream, later = batches(split, 2, seed=0), batches(split, 2, seed=0, start_step=1)
      >>> _ = next(stream)
      >>> next(stream).labels.tolist() == next(later).labels.tolist()
      True
    """
    count = steps_per_epoch(split, batch_size)
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more; got {start_step}.")
    return _stream(split, batch_size, count, seed, start_step, warps)


@checked
def batch_at(split: Split, step: int, batch_size: int, *, seed: int, warps: WarpBank | None = None) -> Batch:
    """Return the batch of one step, the same that `batches` yields there; it costs a whole epoch's shuffle.

    Example:
      >>> split = Split(images=np.zeros((5, 2, 2, 1), np.float32), labels=np.arange(5, dtype=np.int32))
      >>> batch_at(split, 7, 2, seed=0).images.shape
      (2, 2, 2, 1)
    """
    return next(batches(split, batch_size, seed=seed, start_step=step, warps=warps))


@checked
def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Yield every example once, in order, in batches of one shape so that jit compiles once.

    The last batch is filled up with zeros whose mask is False.

    Args:
      split: the examples; an empty split yields nothing.
      batch_size: 1 or more; may be larger than the split.

    Raises:
      ValueError: if `batch_size` is less than 1.

    Example:
      >>> split = Split(images=np.zeros((3, 2, 2, 1), np.float32), labels=np.zeros(3, np.int32))
      >>> [batch.mask.tolist() for batch in eval_batches(split, 2)]
      [[True, True], [True, False]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
    return _padded(split, batch_size)


def _padded(split: Split, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(split), batch_size):
        images, labels = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        mask = np.arange(batch_size) < len(labels)
        if missing:
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
            labels = np.concatenate([labels, np.zeros(missing, labels.dtype)])
        yield Batch(images, labels, mask)


def _stream(split: Split, batch_size: int, count: int, seed: int, start_step: int, warps: WarpBank | None) -> Iterator[Batch]:
    epoch, row = divmod(start_step, count)
    mask = np.ones(batch_size, bool)
    while True:
        examples = shuffled(split, seed=seed, epoch=epoch, warps=warps)
        for start in range(row * batch_size, count * batch_size, batch_size):
            rows = slice(start, start + batch_size)
            yield Batch(examples.images[rows], examples.labels[rows], mask)
        epoch, row = epoch + 1, 0
