"""Batches as a pure function of (seed, step), and evaluation batches of one shape."""

import itertools

import numpy as np
import pytest

from lepton_jax.data import Split, Warp, batch_at, batches, eval_batches, shuffled, steps_per_epoch, warp_bank


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(3)
    return Split(images=rng.random((23, 6, 6, 2), dtype=np.float32), labels=np.arange(23, dtype=np.int32))


@pytest.mark.parametrize("warped", [False, True])
def test_batch_k_depends_on_seed_and_step_alone(split: Split, warped: bool):
    warps = warp_bank(Warp(count=5), (6, 6), seed=0) if warped else None
    straight = list(itertools.islice(batches(split, 4, seed=7, warps=warps), 13))
    for start in (0, 3, 5, 12):  # an epoch has 5 steps: within one, at a border, and across several
        resumed = itertools.islice(batches(split, 4, seed=7, start_step=start, warps=warps), 13 - start)
        for one, expected in zip(
            [*resumed, batch_at(split, start, 4, seed=7, warps=warps)], [*straight[start:], straight[start]]
        ):
            for got, leaf in zip(one, expected, strict=True):
                np.testing.assert_array_equal(got, leaf)
    other = batch_at(split, 12, 4, seed=8, warps=warps)
    assert not np.array_equal(other.labels, straight[12].labels)


def test_an_epoch_has_no_example_twice_and_epochs_differ(split: Split):
    assert steps_per_epoch(split, 4) == 5
    stream = list(itertools.islice(batches(split, 4, seed=0), 10))
    first, second = (np.concatenate([b.labels for b in stream[i : i + 5]]) for i in (0, 5))
    assert len(set(first)) == len(set(second)) == 20
    assert not np.array_equal(first, second)
    for batch in stream:
        np.testing.assert_array_equal(batch.images, split.images[batch.labels])
        assert (batch.images.dtype, batch.labels.dtype, batch.mask.dtype) == (np.float32, np.int32, bool)
        assert batch.mask.all()


def test_every_example_comes_equally_often_in_the_long_run(split: Split):
    seen = np.concatenate([b.labels for b in itertools.islice(batches(split, 4, seed=0), 5 * 200)])
    counts = np.bincount(seen, minlength=23)  # the mean is 200 * 20 / 23; leaving out is random, so nobody is starved
    assert counts.min() > 150


def test_shuffled_is_a_permutation_with_labels_beside_their_images(split: Split):
    epoch = shuffled(split, seed=1, epoch=0)
    assert sorted(epoch.labels) == list(range(23))
    np.testing.assert_array_equal(epoch.images, split.images[epoch.labels])


@pytest.mark.parametrize("size", [1, 5, 23, 64])
def test_eval_batches_give_every_example_once_in_one_shape(split: Split, size: int):
    parts = list(eval_batches(split, size))
    assert {b.images.shape for b in parts} == {(size, 6, 6, 2)}
    masks = np.concatenate([b.mask for b in parts])
    assert masks.sum() == 23
    np.testing.assert_array_equal(np.concatenate([b.images for b in parts])[masks], split.images)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in parts])[masks], split.labels)
    assert not np.concatenate([b.images for b in parts])[~masks].any()


def test_bad_sizes_are_refused_before_the_first_batch(split: Split):
    with pytest.raises(ValueError, match="batch_size must be in 1 to 23, the number of examples; got 24"):
        batches(split, 24, seed=0)
    with pytest.raises(ValueError, match="got 0"):
        batches(split, 0, seed=0)
    with pytest.raises(ValueError, match="start_step must be 0 or more; got -1"):
        batches(split, 4, seed=0, start_step=-1)
    with pytest.raises(ValueError, match="batch_size must be 1 or more; got 0"):
        eval_batches(split, 0)
    with pytest.raises(ValueError, match="the split has no examples"):
        batches(split.take(np.arange(0)), 1, seed=0)
    assert list(eval_batches(split.take(np.arange(0)), 4)) == []
