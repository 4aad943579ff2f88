"""Codecs of data sets: bit for bit where promised, within the promised error elsewhere."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax.artifact import ArtifactError
from lepton_jax.coding.streams import Reader
from lepton_jax.data.compressed import Lossless, PatchPCA, filters, lossless, open_dataset, patch_pca, write_dataset

DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn")


@st.composite
def blocks(draw):
    """Arrays of any dtype and odd shapes; noise, few values, ramps, constants."""
    name = draw(st.sampled_from(DTYPES + FLOATS))
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    item = draw(st.sampled_from([(), (1,), (7,), (0,), (3, 5), (5, 1), (4, 3, 3), (3, 4, 2), (2, 2, 2, 2)]))
    count = draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    size = count * int(np.prod(item)) * dtype.itemsize
    kind = draw(st.sampled_from(["noise", "few", "ramp", "constant"]))
    data = {
        "noise": rng.integers(0, 256, size, dtype=np.uint8),
        "few": rng.choice(np.array([0, 63, 192, 255], np.uint8), size),
        "ramp": (np.arange(size) // max(dtype.itemsize, 1)).astype(np.uint8),
        "constant": np.full(size, draw(st.integers(0, 255)), np.uint8),
    }[kind]
    data = data & 1 if name == "bool" else data
    return data.view(dtype).reshape(count, *item)


@given(blocks(), st.sampled_from(["size", "speed"]))
@settings(max_examples=120, deadline=None)
def test_a_block_comes_back_bit_for_bit(block, favour):
    coded = lossless.encode(block, Lossless(favour=favour))
    reader = Reader(coded.data)
    back = lossless.decode(reader, block.shape, block.dtype)
    assert back.dtype == block.dtype
    assert back.shape == block.shape
    assert back.tobytes() == block.tobytes()
    assert reader.left == 0
    assert len(coded.data) <= block.nbytes + 16 + 2 * block.dtype.itemsize


@given(blocks(), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_a_file_comes_back_bit_for_bit(tmp_path_factory, block, rows):
    path = tmp_path_factory.getbasetemp() / "some.lepd"
    write_dataset(path, {"x": block, "y": np.arange(len(block))}, block=rows)
    with open_dataset(path) as data:
        back = data.arrays()["x"]
        assert back.dtype == block.dtype
        assert back.shape == block.shape
        assert back.tobytes() == block.tobytes()
        for place in range(len(block)):
            assert np.asarray(data[place]["x"]).tobytes() == block[place].tobytes()


@pytest.mark.parametrize("number", range(len(filters.FILTERS)))
@pytest.mark.parametrize("kind", ["u1", "u2", "u8"])
def test_filters_are_undone(number, kind):
    rng = np.random.default_rng(number)
    for shape in ((1, 1, 1, 1), (2, 3, 5, 3), (3, 1, 4, 1), (2, 6, 1, 1)):
        x = rng.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)
        assert np.array_equal(filters.undo(number, filters.apply(number, x)), x)
    x = rng.integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    assert np.array_equal(filters.add_green(filters.subtract_green(x)), x)


def test_median_by_hand():
    # left 10, above 12: corner 13 is above both, so the lower; corner 9 below both, the higher; corner 11 between: the plane.
    for corner, guess in ((13, 10), (9, 12), (11, 11)):
        image = np.array([[corner, 12], [10, guess + 1]], np.uint8).reshape(1, 2, 2, 1)
        rest = filters.apply(filters.FILTERS.index("median"), image)
        assert rest[0, 1, 1, 0] == 2  # +1, folded


def test_prediction_pays_where_it_should():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    smooth = 128 + 60 * np.sin(x / 9 + rng.uniform(0, 6, (40, 1, 1))) + 50 * np.cos(y / 7 + rng.uniform(0, 6, (40, 1, 1)))
    images = (smooth + rng.normal(size=smooth.shape)).astype(np.uint8)[..., None]
    coded = lossless.encode(images, Lossless())
    assert coded.chosen.split(",")[0] in ("median", "plane", "left", "above")
    assert len(coded.data) < 0.6 * images.size
    slow = np.cumsum(rng.normal(size=(40, 200)).astype(np.float32) * 1e-3, 1, np.float32) + 1
    assert lossless.encode(slow, Lossless()).chosen.startswith("left")
    sorted_numbers = np.sort(rng.integers(0, 1 << 20, 3000))
    assert lossless.encode(sorted_numbers, Lossless()).chosen.startswith("example")


def images_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Smooth images with some noise, in 0 to 255."""
    n, h, w, c = shape
    y, x = np.mgrid[:h, :w]
    waves = rng.uniform(0, 6, (n, 1, 1, c)), rng.uniform(3, 9, (n, 1, 1, c))
    smooth = 128 + 90 * np.sin(x[None, :, :, None] / waves[1] + waves[0]) * np.cos(y[None, :, :, None] / 6 + waves[0])
    return np.clip(smooth + 6 * rng.normal(size=shape), 0, 255).astype(dtype)


@pytest.mark.parametrize("shape", [(30, 16, 16, 1), (21, 13, 10, 3), (5, 3, 20, 2)])
@pytest.mark.parametrize(("energy", "bits"), [(0.8, None), (0.95, 8), (0.999, None)])
def test_the_energy_asked_for_is_kept(shape, energy, bits, tmp_path):
    rng = np.random.default_rng(sum(shape))
    images = images_of(rng, shape, "float32")
    write_dataset(tmp_path / "d", {"image": images}, PatchPCA(patch=4, energy=energy, bits=bits), block=7)
    data = open_dataset(tmp_path / "d")
    back = data.arrays()["image"]
    assert back.dtype == np.float32
    # Over patches, edges continued: counted here anew with plain loops.
    wanted, lost = 0.0, 0.0
    pad = ((0, 0), (0, -shape[1] % 4), (0, -shape[2] % 4), (0, 0))
    patches = []
    for image in np.pad(images.astype(np.float64), pad, "edge"):
        for top in range(0, image.shape[0], 4):
            for left in range(0, image.shape[1], 4):
                patches.append(image[top : top + 4, left : left + 4].ravel())
    wanted = np.square(np.array(patches) - np.mean(patches, 0)).sum()
    lost = np.square(back.astype(np.float64) - images).sum()  # no more than over the continued patches
    assert 1 - lost / wanted >= energy
    entry = data.report().arrays[0]
    assert energy <= entry.kept < 1
    assert entry.mse == pytest.approx(np.mean(np.square(back.astype(np.float64) - images)), rel=1e-6)


def test_rounded_images_keep_the_bound_and_say_their_error(tmp_path):
    images = images_of(np.random.default_rng(4), (90, 16, 16, 3), "uint8")
    sizes = {}
    for energy in (0.9, 0.99, 0.999):
        write_dataset(tmp_path / "d", {"image": images, "label": np.arange(90)}, PatchPCA(patch=4, energy=energy))
        data = open_dataset(tmp_path / "d")
        back = data.arrays()
        assert back["image"].dtype == np.uint8
        assert back["label"].tolist() == list(range(90))
        mse = np.mean(np.square(back["image"].astype(float) - images))
        entry = data.report().arrays[0]
        assert entry.mse == pytest.approx(mse)
        assert entry.psnr == pytest.approx(10 * np.log10(255**2 / mse))
        # At most the lost variance, and half a level of rounding.
        assert np.sqrt(mse) <= np.sqrt((1 - energy) * images.astype(float).var()) + 0.5
        sizes[energy] = entry.stored_bytes
    assert sizes[0.9] < sizes[0.99] < sizes[0.999] < images.nbytes


def test_the_chosen_step_is_no_worse_than_eight_bits(tmp_path):
    images = images_of(np.random.default_rng(5), (200, 16, 16, 1), "uint8")
    stored = []
    for bits in (None, 8):
        write_dataset(tmp_path / "d", {"image": images}, PatchPCA(patch=4, energy=0.97, bits=bits))
        stored.append(open_dataset(tmp_path / "d").report().arrays[0].stored_bytes)
    assert stored[0] < 0.9 * stored[1]


def test_constant_images_need_no_component(tmp_path):
    images = np.full((10, 8, 8, 1), 77, np.uint8)
    write_dataset(tmp_path / "d", {"image": images}, PatchPCA())
    data = open_dataset(tmp_path / "d")
    assert np.array_equal(data.arrays()["image"], images)
    assert data.report().arrays[0].chosen == {"0 components": 1}


def test_refusals_of_the_lossy_codec():
    images = images_of(np.random.default_rng(6), (10, 8, 8, 1), "float32")
    with pytest.raises(ValueError, match=r"image: bits=2 keeps at most 0\.\d+ of the variance, less than energy=0.9999"):
        patch_pca.fit(images, PatchPCA(bits=2, energy=0.9999), [slice(0, 10)], "image")
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="image: must be finite, but images 0 to 9"):
        patch_pca.fit(images, PatchPCA(), [slice(0, 10)], "image")
    for wrong in ({"energy": 1.0}, {"energy": 0.0}, {"patch": 0}, {"bits": 17}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PatchPCA(**wrong)


def test_damaged_streams_end_in_artifact_errors():
    rng = np.random.default_rng(8)
    block = images_of(rng, (6, 8, 8, 1), "uint8")
    basis = patch_pca.fit(block, PatchPCA(patch=4), [slice(0, 6)])
    streams = [lossless.encode(block, Lossless()).data, patch_pca.encode(block, basis)]
    decoders = [
        lambda reader: lossless.decode(reader, block.shape, block.dtype),
        lambda reader: patch_pca.decode(reader, block.shape, block.dtype, basis),
    ]
    for stream, decode in zip(streams, decoders):
        for cut in range(0, len(stream) - 1, 7):
            with pytest.raises((ArtifactError, ValueError, IndexError)):
                decode(Reader(stream[:cut]))
    with pytest.raises(ArtifactError, match="unknown filter 99"):
        lossless.decode(Reader(bytes([99, 0])), block.shape, block.dtype)
    with pytest.raises(ArtifactError, match="a basis of"):
        patch_pca.read_basis(Reader(patch_pca.write_basis(basis)), 3)
