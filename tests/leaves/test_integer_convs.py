"""Convolutions of int8 in every form give the same integers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.leaves.convs import conv
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.quantization import Uniform


def codes(values: np.ndarray) -> Quantized:
    ones = jnp.ones((1,) * values.ndim, jnp.float32)
    return Quantized(jnp.asarray(values, jnp.int8), ones, (), Uniform(8), "float32")


@pytest.mark.parametrize(
    ("image", "channels", "features", "size", "stride"),
    [
        (8, 16, 16, 3, 1),
        (8, 3, 16, 3, 2),
        (8, 8, 32, 3, 1),
        (9, 3, 8, 7, 2),
        (9, 9, 8, 5, 1),
        (2, 8, 32, 3, 1),
        (5, 12, 20, 1, 1),
    ],
)
def test_all_forms_give_the_same_integers(image: int, channels: int, features: int, size: int, stride: int) -> None:
    rng = np.random.default_rng()
    x = rng.integers(-128, 128, (2, image, image, channels))
    kernel = rng.integers(-128, 128, (size, size, channels, features))
    x.reshape(-1)[::3], kernel.reshape(-1)[::3] = -128, -128  # the largest sums there are

    def of(x: Any, kernel: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)

    [eqn] = jax.make_jaxpr(of)(jnp.ones(x.shape), jnp.ones(kernel.shape)).eqns
    found = jax.jit(lambda x, kernel: conv(x, kernel, eqn.params))(codes(x), codes(kernel))
    np.testing.assert_array_equal(found, of(jnp.asarray(x, jnp.int32), jnp.asarray(kernel, jnp.int32)))
