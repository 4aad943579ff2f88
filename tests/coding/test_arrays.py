"""Numbers come back bit for bit, in as few bytes as their content allows."""

import ml_dtypes
import numpy as np
import pytest

from lepton_jax.coding import arrays
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader
from lepton_jax.core.errors import ArtifactError

DTYPES = [
    "float32",
    "float16",
    "float64",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "int32",
    "uint8",
    "int64",
    "bool",
]


def check_coded(array: np.ndarray) -> int:
    """Round-trip `array`, compare bits, and return the bytes it took."""
    writer = arrays.encode(arrays.patterns(array), array.dtype, array.shape, Hints())
    reader = Reader(bytes(writer.data))
    back = arrays.decode(reader, array.dtype, array.shape, Hints(), "values")
    np.testing.assert_array_equal(back, arrays.patterns(array))
    assert reader.left == 0
    assert sum(reader.bytes.values()) == len(writer)
    return len(writer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (33,), (3, 0, 2), (40, 30)])
def test_any_bits_come_back(dtype, shape):
    dtype = arrays.dtype_of(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(0).integers(0, 2 if dtype.name == "bool" else 256, count, dtype=np.uint8)
    check_coded(data.view(dtype).reshape(shape))


def test_special_floats_keep_their_bits():
    bits = np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 0, 0x7F800000, 0xFF800000, 1, 0x80000001], np.uint32)
    check_coded(bits.view(np.float32))
    check_coded(np.tile(bits, 200).view(np.float32))


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_float32_that_is_exact_in_16_bits_takes_16(narrow):
    array = np.random.default_rng(1).normal(size=300).astype(narrow).astype(np.float32)
    assert check_coded(array) <= 2 * 300 + 8


def test_zeros_constants_palettes_and_sparse_arrays_are_small():
    rng = np.random.default_rng(2)
    assert check_coded(np.zeros((300, 100), np.float32)) <= 10
    assert check_coded(np.full(10_000, 3.25, np.float32)) <= 10
    assert check_coded(rng.choice(np.array([-0.7, 0.11, 0.3], np.float32), 4000)) < 4000 * 1.6 / 8 + 40
    kernel = np.where(rng.random((200, 100)) < 0.05, rng.normal(size=(200, 100)), 0).astype(np.float32)
    assert check_coded(kernel) < 4 * np.count_nonzero(kernel) + 20_000 * 0.29 / 8 + 100


def test_trained_looking_bfloat16_takes_less_than_its_raw_bytes():
    array = (0.02 * np.random.default_rng(3).normal(size=(300, 200))).astype(ml_dtypes.bfloat16)
    assert check_coded(array) < 0.75 * array.nbytes


@pytest.mark.parametrize("name", ["object", "no_such", "O", "float32,float32", "V3", "<U5", "str"])
def test_dtypes_that_are_not_numbers_are_refused(name):
    with pytest.raises(ArtifactError, match="dtype"):
        arrays.dtype_of(name)
