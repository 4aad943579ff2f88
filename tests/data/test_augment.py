"""Sparse warps against SciPy's own resampling and hand-made cases."""

import numpy as np
import pytest
import scipy.ndimage

from lepton_jax.data import Warp, augment_epoch, warp_bank
from lepton_jax.data.augment import _bilinear, _coordinates

STILL = {"rotation_degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift_pixels": 0.0, "elastic_alpha": 0.0}


@pytest.mark.parametrize("seed", range(4))
def test_a_warp_samples_as_scipy_does(seed: int):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(5, 12)), int(rng.integers(5, 12)))
    coordinates = _coordinates(Warp(shift_pixels=3.0), shape, rng)
    image = rng.random(shape)
    # map_coordinates blends with zeros beyond the border only in "grid-constant" mode, as the sparse warp does.
    expected = scipy.ndimage.map_coordinates(image, coordinates, order=1, mode="grid-constant")
    got = (_bilinear(coordinates) @ image.ravel()).reshape(shape)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_all_settings_at_zero_leave_images_as_they_are():
    images = np.random.default_rng(0).random((7, 5, 6, 3), dtype=np.float32)
    bank = warp_bank(Warp(**STILL, count=3), (5, 6), seed=0)
    got = augment_epoch(images, bank, seed=0, epoch=0)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, images)


def test_a_quarter_turn_and_a_shift_by_hand():
    class Extreme:
        """Stands in for a generator whose every draw is the largest."""

        def uniform(self, low: float, high: float, size: int | None = None) -> np.ndarray | float:
            return high if size is None else np.full(size, float(high))

        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.ones(shape)

    image = np.arange(9.0).reshape(3, 3)
    turn = _bilinear(_coordinates(Warp(**STILL | {"rotation_degrees": 90.0}), (3, 3), Extreme()))
    np.testing.assert_allclose((turn @ image.ravel()).reshape(3, 3), np.rot90(image, -1), atol=1e-6)
    shift = _bilinear(_coordinates(Warp(**STILL | {"shift_pixels": 1.0}), (3, 3), Extreme()))
    np.testing.assert_allclose((shift @ image.ravel()).reshape(3, 3), [[0, 0, 0], [0, 0, 1], [0, 3, 4]], atol=1e-6)


def test_elastic_displacement_has_the_asked_root_mean_square():
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20), indexing="ij"))
    moved = _coordinates(Warp(**STILL | {"elastic_alpha": 1.5}), (20, 20), np.random.default_rng(0)) - grid
    np.testing.assert_allclose(np.sqrt(np.mean(moved**2)), 1.5, rtol=1e-6)
    assert np.abs(np.diff(moved, axis=1)).max() < 1.0  # smooth: sigma is 4 pixels


def test_an_epoch_is_pure_and_uses_every_warp():
    images = np.zeros((12, 8, 8, 2), np.float32)
    images[:, 3, 4] = 1.0
    bank = warp_bank(Warp(count=4), (8, 8), seed=5)
    first, again, later = (augment_epoch(images, bank, seed=1, epoch=e) for e in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)
    assert len(np.unique(first[..., 0].reshape(12, -1), axis=0)) == 4
    np.testing.assert_array_equal(first[..., 0], first[..., 1])
    expected = {(warp @ images[0, :, :, 0].ravel()).tobytes() for warp in bank.warps}
    assert {image.tobytes() for image in first[..., 0].reshape(12, -1)} == expected
    np.testing.assert_array_equal(warp_bank(Warp(count=4), (8, 8), seed=5).warps[3].toarray(), bank.warps[3].toarray())


def test_fewer_images_than_warps():
    bank = warp_bank(Warp(count=9), (4, 4), seed=0)
    assert augment_epoch(np.ones((2, 4, 4, 1), np.float32), bank, seed=0, epoch=0).shape == (2, 4, 4, 1)


def test_bad_settings_and_sizes():
    with pytest.raises(ValueError, match="Warp") as caught:
        Warp(rotation_degrees=-1.0, scale=1.0, elastic_sigma=0.0, count=0)
    for part in ("rotation_degrees: must be 0 or more; got -1.0", "scale:", "elastic_sigma:", "count:"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"images \[N, 4, 4, C\]; got shape \(2, 5, 5, 1\)"):
        augment_epoch(np.ones((2, 5, 5, 1), np.float32), warp_bank(Warp(count=1), (4, 4), seed=0), seed=0, epoch=0)
