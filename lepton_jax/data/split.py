"""Stratified splits, and datasets made of a user's own arrays."""

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.dataset import Dataset, Split


@checked
def stratified(labels: np.ndarray, size: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split indices so that each class has the same share in both parts.

    Class c gets ``size * n_c / N`` of the held-out part, rounded by largest remainder so that the sum is exact.

    Args:
      labels: integers ``[N]``.
      size: how many to hold out, in ``[0, N)``.
      seed: equal seeds give equal splits.

    Returns:
      ``(rest, held_out)``, sorted int64 indices of lengths ``N - size`` and ``size``.

    Raises:
      ValueError: if `size` leaves nothing to train on.

    Example:
      >>> rest, held_out = stratified(np.array([0, 0, 1, 1]), 2)
      >>> len(rest), len(held_out), sorted(np.array([0, 0, 1, 1])[held_out].tolist())
      (2, 2, [0, 1])
    """
    if not 0 <= size < max(len(labels), 1):
        raise ValueError(f"the held-out part must have 0 to {len(labels) - 1} of {len(labels)} examples; got {size}.")
    classes, counts = np.unique(labels, return_counts=True)
    exact = size * counts / max(len(labels), 1)
    quota = np.floor(exact).astype(int)
    # A stable sort makes ties go to the lowest class: the split must not depend on the sorting algorithm.
    quota[np.argsort(quota - exact, kind="stable")[: size - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, quota, strict=True)]
    held_out = np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)]))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


@checked
def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    validation: int = 0,
    seed: int = 0,
    name: str = "arrays",
) -> Dataset:
    """Make a dataset of arrays in memory.

    uint8 images become float32 by ``x / 255``; floating images keep their values. Labels become int32.

    Args:
      train: images ``[N, H, W, C]`` and integer labels ``[N]``.
      test: the same, for the final figure.
      num_classes: labels are in ``[0, num_classes)``.
      validation: how many examples to carve out of `train`, stratified; 0 trains on everything.
      seed: of that split.
      name: for tables and file names.

    Returns:
      The dataset.

    Raises:
      ValueError: for wrong ranks or lengths, no examples, or labels out of range.
      TypeError: for images that are neither uint8 nor floating, or labels that are not integers.

    Example:
      >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10) % 2
      >>> dataset = from_arrays((images, labels), (images, labels), num_classes=2, validation=4)
      >>> len(dataset.train), len(dataset.validation), dataset.train.images.dtype
      (6, 4, dtype('float32'))
    """
    whole, held_out = _convert(train, f"{name}/train"), _convert(test, f"{name}/test")
    kept, carved = stratified(whole.labels, validation, seed=seed)
    rest = whole if validation == 0 else whole.take(kept)
    return Dataset(name=name, num_classes=num_classes, train=rest, validation=whole.take(carved), test=held_out)


def _convert(arrays: tuple[np.ndarray, np.ndarray], where: str) -> Split:
    images, labels = np.asarray(arrays[0]), np.asarray(arrays[1])
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"{where}: images must be uint8 (0 to 255) or floating; got {images.dtype}. Convert them first.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{where}: labels must be integers; got {labels.dtype}. Use labels.astype('int32').")
    if len(images) == 0:
        raise ValueError(f"{where}: at least one example is required; got none.")
    scaled = images.astype(np.float32)
    return Split(images=scaled / np.float32(255) if images.dtype == np.uint8 else scaled, labels=labels.astype(np.int32))
