"""Errors and bytes of number formats, against figures computed once in float64 and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.quantization import (
    Binary,
    Float8,
    Format,
    NormalFloat4,
    Ternary,
    Uniform,
    calibrated,
    fake,
    mxfp4,
    mxfp8,
    quantize,
)

# Mean squared error over the matrix's own mean square: computed once in float64 by the references of test_number_formats.py.
MATRIX = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
GOLDEN = {
    **dict(zip([Uniform(b) for b in (2, 3, 4, 8, 16)], (0.541266, 0.105629, 0.0231538, 7.89152e-05, 1.17232e-09))),
    **dict(
        zip(
            [Uniform(b, True, None, 32, scale_dtype="float16") for b in (2, 3, 4, 8)],
            (0.21546, 0.0397528, 0.0091245, 3.00795e-05),
        )
    ),
    **dict(
        zip(
            [Uniform(b, False, None, 32, scale_dtype="float16") for b in (2, 3, 4, 8)],
            (0.16299, 0.0287397, 0.00649471, 2.26913e-05),
        )
    ),
    Binary(): 0.355054,
    Ternary(): 0.189192,
    NormalFloat4(): 0.00901591,
    mxfp4(): 0.0134477,
    Float8(): 0.000727703,
    Float8("float8_e5m2"): 0.00285091,
    mxfp8(): 0.000939305,
    mxfp8("float8_e5m2"): 0.00286592,
    **dict(zip([Uniform(b, narrow_range=True) for b in (2, 3, 4, 8, 16)], (0.861831, 0.14371, 0.0265, 8.02919e-05, 1.157e-09))),
    **dict(
        zip(
            [Uniform(b, True, None, 32, scale_dtype="float16", narrow_range=True) for b in (2, 3, 4, 8)],
            (0.427034, 0.0509103, 0.00954793, 2.82266e-05),
        )
    ),
}


@pytest.mark.parametrize("fmt", GOLDEN, ids=lambda fmt: f"{fmt.name} {fmt.group_size}")
def test_golden_error(fmt: Format) -> None:
    seen = np.asarray(fake(jnp.asarray(MATRIX), fmt, *calibrated(jnp.asarray(MATRIX), fmt))).astype(np.float64)
    error = np.mean((seen - MATRIX) ** 2) / np.mean(MATRIX.astype(np.float64) ** 2)
    np.testing.assert_allclose(error, GOLDEN[fmt], rtol=1e-4)


def test_errors_fall_with_bits_and_with_smaller_groups() -> None:
    errors = list(GOLDEN.values())
    for family in (errors[:5], errors[5:9], errors[9:13]):
        assert all(more > 2 * fewer for more, fewer in itertools.pairwise(family))
    assert all(whole > groups for whole, groups in zip(errors[:4], errors[5:9]))


@pytest.mark.parametrize(
    ("fmt", "smaller"),
    [
        (Uniform(8, channel_axis=-1), 3.9),
        (Uniform(4, group_size=32, scale_dtype="float16"), 6.9),
        (Uniform(4, channel_axis=-1), 7.8),
        (mxfp4(), 7.5),
        (NormalFloat4(scale_dtype="float16"), 7.5),
        (Binary(channel_axis=-1), 30),
    ],
    ids=repr,
)
def test_bytes_in_memory(fmt: Format, smaller: float) -> None:
    """Of all arrays: words, scales, zero points."""
    q = jax.eval_shape(lambda x: quantize(x, fmt), jax.ShapeDtypeStruct((1024, 1024), jnp.float32))
    assert q.words.size == 1024 * 1024 * fmt.bits // 8
    assert 4 * 1024 * 1024 / sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(q)) >= smaller
