"""Casting: masters and gradients in float32, views in another dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import cast, chain, fake_quant

PARAMS = {"w": jnp.array([[1.0, 1.001], [-3.14159, 1e-3]]), "bias": jnp.array([0.1, 0.2]), "steps": jnp.int32(3)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, "float32"], ids=str)
def test_dtypes_and_values(dtype: object) -> None:
    transform = cast(dtype)
    params, state = transform.init(PARAMS)
    seen = transform.view(params, state)
    for name in ("w", "bias"):
        assert params[name].dtype == jnp.float32
        assert seen[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(seen[name], np.asarray(PARAMS[name]).astype(jnp.dtype(dtype)))
    assert seen["steps"].dtype == jnp.int32


def test_gradients_are_float32() -> None:
    transform = cast("bfloat16", select="w")
    floats = {name: PARAMS[name] for name in ("w", "bias")}
    assert transform.view(floats, ())["bias"].dtype == jnp.float32
    grads = jax.grad(lambda p: jnp.sum(transform.view(p, ())["w"]).astype(jnp.float32))(floats)
    assert grads["w"].dtype == grads["bias"].dtype == jnp.float32
    assert grads["w"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_before_and_after_quantization() -> None:
    w, bf16 = PARAMS["w"], jnp.bfloat16
    quantized = fake_quant(bits=4)
    after, before = chain(quantized, cast(bf16)), chain(cast(bf16), quantized)
    for transform, expected in (
        (after, quantized.view({"w": w}, ())["w"].astype(bf16)),
        (before, quantized.view({"w": w.astype(bf16)}, ())["w"]),
    ):
        params, state = transform.init({"w": w})
        seen = transform.view(params, state)["w"]
        assert seen.dtype == expected.dtype == bf16
        np.testing.assert_array_equal(seen, expected)
        assert params["w"].dtype == jnp.float32


def test_misuse() -> None:
    with pytest.raises(TypeError, match=r"compute_dtype must be floating, e.g. 'bfloat16'; got int8"):
        cast("int8")
    with pytest.raises(TypeError, match=r"cast: compute_dtype must be a floating dtype, .*got 'bfloat61'"):
        cast("bfloat61")
    with pytest.raises(ValueError, match=r"matches no floating leaf.*bias, w"):
        cast("bfloat16", select="kernel").init(PARAMS)
