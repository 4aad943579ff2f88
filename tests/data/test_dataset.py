"""Splits, label checks, digits and the user's own arrays."""

import numpy as np
import pytest

from lepton_jax.data import Dataset, Split, active_features, check_labels, from_arrays, load_digits, stratified


def make_split(count: int = 10, classes: int = 3, shape: tuple[int, ...] = (4, 4, 1), seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.random((count, *shape), dtype=np.float32)
    return Split(images=images, labels=rng.integers(0, classes, count).astype(np.int32))


def test_split_reports_every_problem_at_once():
    with pytest.raises(ValueError, match="split needs") as caught:
        Split(images=np.zeros((3, 4, 4), np.float64), labels=np.zeros((2, 10), np.int64))
    message = str(caught.value)
    for part in ("(3, 4, 4)", "images[..., None]", "argmax", "(3,) images but (2,) labels", "float64", "int64"):
        assert part in message


def test_labels_out_of_range_are_named_with_their_place():
    split = make_split(classes=3)
    bad = Split(images=split.images, labels=np.where(np.arange(10) == 4, 7, split.labels).astype(np.int32))
    with pytest.raises(ValueError, match=r"mine/test: labels must be in \[0, 3\); got 7, first at index 4\."):
        Dataset(name="mine", num_classes=3, train=split, validation=split, test=bad)
    with pytest.raises(ValueError, match=r"got -1, first at index 1"):
        check_labels(np.array([0, -1]), 3)
    with pytest.raises(ValueError, match=r"got 3, 4, 5, 6, 7, \.\.\., first"):
        check_labels(np.arange(3, 10), 3)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_keeps_shares_sizes_and_every_index(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, p=[0.5, 0.3, 0.1, 0.08, 0.02], size=997)
    size = int(rng.integers(1, 900))
    rest, held = stratified(labels, size, seed=seed)
    assert len(held) == size
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held])), np.arange(997))
    share = np.bincount(labels[held], minlength=5)
    assert np.all(np.abs(share - size * np.bincount(labels, minlength=5) / 997) < 1)
    np.testing.assert_array_equal(held, stratified(labels, size, seed=seed)[1])
    assert not np.array_equal(held, stratified(labels, size, seed=seed + 1)[1])


def test_stratified_refuses_to_take_everything():
    with pytest.raises(ValueError, match="0 to 9 of 10 examples; got 10"):
        stratified(np.zeros(10, int), 10)


def test_digits_are_scikit_learns_split_once_and_for_all():
    from sklearn import datasets

    digits, whole = load_digits(), load_digits(validation=0)
    assert [len(digits.train), len(digits.validation), len(digits.test), len(whole.train)] == [1257, 180, 360, 1437]
    np.testing.assert_array_equal(digits.test.images, whole.test.images)
    assert digits.train.images.dtype == np.float32
    assert digits.test.labels.dtype == np.int32
    # Which images are where must never move: every reported error rests on it.
    assert digits.test.labels[:12].tolist() == TEST_LABELS
    pooled = np.concatenate([s.images for s in (digits.train, digits.validation, digits.test)]).reshape(1797, 64)
    reference = (datasets.load_digits().data / 16).astype(np.float32)
    np.testing.assert_array_equal(np.sort(pooled.view("V256"), axis=0), np.sort(reference.view("V256"), axis=0))
    for split in (digits.train, digits.validation, digits.test):
        counts = np.bincount(split.labels, minlength=10) / len(split)
        np.testing.assert_allclose(counts, np.bincount(datasets.load_digits().target) / 1797, atol=1 / len(split))


TEST_LABELS = [5, 9, 2, 4, 6, 7, 9, 3, 4, 6, 8, 5]


def test_from_arrays_converts_units_and_carves_a_validation_part():
    images, labels = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1), np.arange(10, dtype=np.uint8) % 2
    dataset = from_arrays((images, labels), (images[:3].astype(np.float64), labels[:3]), num_classes=2, validation=4)
    np.testing.assert_array_equal(np.bincount(dataset.validation.labels), [2, 2])
    both = np.concatenate([dataset.train.images, dataset.validation.images])
    np.testing.assert_array_equal(np.sort(both.ravel()), np.arange(40, dtype=np.float32) / 255)
    np.testing.assert_array_equal(dataset.test.images.ravel(), np.arange(12))  # floats keep their values
    assert {s.images.dtype for s in (dataset.train, dataset.validation, dataset.test)} == {np.dtype(np.float32)}
    assert len(from_arrays((images, labels), (images, labels), num_classes=2).validation) == 0


def test_from_arrays_refuses_what_is_no_labelled_image_set():
    images, labels = np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int32)
    good = (images, labels)
    with pytest.raises(TypeError, match=r"arrays/train: images must be uint8 .* got int64"):
        from_arrays((images.astype(np.int64), labels), good, num_classes=2)
    with pytest.raises(TypeError, match="arrays/test: labels must be integers; got float32"):
        from_arrays(good, (images, labels.astype(np.float32)), num_classes=2)
    with pytest.raises(ValueError, match="arrays/test: at least one example"):
        from_arrays(good, (images[:0], labels[:0]), num_classes=2)
    with pytest.raises(ValueError, match=r"images\[\.\.\., None\]"):
        from_arrays((images[..., 0], labels), good, num_classes=2)


def test_active_features_are_the_pixels_that_are_ever_nonzero():
    images = np.zeros((5, 3, 3, 2), np.float32)
    images[4, 1, 2, 0], images[0, 0, 0, 1] = 0.25, -1.0
    active = active_features(images)
    assert active.dtype == bool
    assert np.argwhere(active).tolist() == [[0, 0, 1], [1, 2, 0]]
