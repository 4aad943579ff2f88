"""What number formats refuse, and what they say."""

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import fake_quant
from lepton_jax.quantization import MX, Float8, QArray, Uniform, quantize


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Uniform(17), "Uniform: bits must be a whole number from 2 to 8; got 17. 16 may be written, too"),
        (lambda: Uniform(group_size=0), "Uniform: group_size must be a whole number from 1 up; got 0"),
        (lambda: Uniform(group_axis=1), "Uniform: group_axis=1 needs a group_size"),
        (lambda: Uniform(4, symmetric=False, narrow_range=True), "Uniform: narrow_range=True is for signed symmetric levels"),
        (lambda: Uniform(4, signed=False, narrow_range=True), "Uniform: narrow_range=True is for signed symmetric levels"),
        (lambda: Uniform(scale_dtype="int8"), "Uniform: scale_dtype must be one of float32, float16, bfloat16; got 'int8'"),
        (lambda: MX("float8_e4m3"), "MX: element must be one of float4_e2m1fn, float8_e4m3fn, float8_e5m2"),
        (lambda: MX(group_size=None), "MX: group_size must be a whole number"),
        (lambda: Float8("float16"), "Float8: dtype must be one of float8_e4m3fn, float8_e5m2; got 'float16'"),
        (
            lambda: quantize(jnp.ones((8, 3)), Uniform(group_size=9)),
            r"group_size=9 is larger than axis 0 .* \(8, 3\); write 8 or",
        ),
        (
            lambda: quantize(jnp.ones((8, 3)), Uniform(group_size=2, group_axis=2)),
            "group_axis=2 is out of range.*write -2 to 1",
        ),
        (lambda: quantize(jnp.float32(1), Uniform(group_size=2)), "groups need an axis"),
        (
            lambda: fake_quant(Uniform(4, group_size=8)).init(
                {"a": jnp.ones((4, 4)), "b": jnp.ones((8, 2)), "c": jnp.ones((3, 2))}
            ),
            r"does not fit:\n  a: group_size=8 is larger than axis 0.*\n  c: group_size=8",
        ),
        (
            lambda: QArray.from_qvalue(jnp.ones((2, 2), jnp.int8), jnp.ones((1, 2)), jnp.zeros((1, 2)), Uniform(), "float32"),
            r"must have the shape \(1, 1\)",
        ),
    ],
)
def test_bad_settings(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan])
def test_a_scale_that_is_none(scale: float) -> None:
    codes, zero = jnp.ones((2, 2), jnp.int8), jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(
        ValueError, match=r"every scale must be finite and not zero; 1 of 1 are not .* Calibrate on finite values"
    ):
        QArray.from_qvalue(codes, jnp.full((1, 1), scale), zero, Uniform(), "float32")


@pytest.mark.parametrize("fmt", ["int8", 8, None])
def test_no_format(fmt: object) -> None:
    with pytest.raises(TypeError, match=r"quantize: takes a number format, e.g. Uniform\(bits=4\); got"):
        quantize(jnp.ones(3), fmt)


def test_integers_and_axes_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"takes an array of floats; got int32, shape \(3,\)"):
        quantize(jnp.arange(3), Uniform())
    with pytest.raises(TypeError, match=r"channel_axis must be a whole number, several, 'out' or None; got 1\.0"):
        Uniform(channel_axis=1.0)
