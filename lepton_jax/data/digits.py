"""The handwritten digits embedded in scikit-learn: no download, ready in a blink."""

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import import_extra
from lepton_jax.data.dataset import Dataset
from lepton_jax.data.split import from_arrays, stratified

_TEST = 360
_SPLIT_SEED = 0


@checked
def load_digits(*, validation: int = 180) -> Dataset:
    """Load 1,797 images of 8 x 8 pixels, grey levels divided by 16.

    The set's last 360 images are by other writers and much harder, so parts in the set's own order would not be comparable:
    the 360 test images are drawn stratified by class, always the same, whatever `validation` is.

    Args:
      validation: how many of the 1,437 others to set aside for choices, stratified and always the same; 0 for final runs.

    Returns:
      Images float32 ``[N, 8, 8, 1]`` in [0, 1], ten classes.

    Example:
      >>> digits = load_digits()
      >>> len(digits.train), len(digits.validation), len(digits.test)
      (1257, 180, 360)

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998 (its test part, as in scikit-learn).
    """
    bunch = import_extra("sklearn.datasets", "data").load_digits()  # it takes a second, and only this source needs it
    images, labels = (bunch.images / 16).astype(np.float32)[..., None], bunch.target
    rest, test = stratified(labels, _TEST, seed=_SPLIT_SEED)
    return from_arrays(
        (images[rest], labels[rest]),
        (images[test], labels[test]),
        num_classes=10,
        validation=validation,
        seed=_SPLIT_SEED,
        name="digits",
    )
