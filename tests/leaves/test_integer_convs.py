"""Convolutions of int8 in every form give the same integers."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.leaves.convs import conv
from lepton_jax.leaves.dots import dot
from lepton_jax.leaves.integer_convs import integers, vectored
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
        (9, 1, 20, 5, 1),
        (11, 3, 64, 7, 2),
        (10, 3, 24, 3, 3),
        (6, 16, 8, 3, 2),
        (3, 64, 32, 3, 1),
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


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_shape_in_any_order_with_a_zero_point(rank: int) -> None:
    """Strides, paddings, dilations and orders of axes are drawn; around the image stands the zero point."""
    rng = np.random.default_rng()
    for _ in range(8):
        channels, features = (int(n) for n in rng.choice([1, 2, 3, 4, 7, 8, 16, 20, 32], 2))
        image, size = rng.integers(4, 12, rank), rng.integers(1, 5, rank)
        strides, dilations = rng.integers(1, 4, rank), (rng.integers(1, 3, rank) if rng.random() < 0.3 else np.ones(rank, int))
        padding = [tuple(int(n) for n in rng.integers(0, 4, 2)) for _ in range(rank)]
        axes = "WHD"[:rank]
        names = tuple("".join(rng.permutation([*letters, *axes])) for letters in ("NC", "IO", "NC"))
        numbers = jax.lax.conv_dimension_numbers((1,) * (rank + 2), (1,) * (rank + 2), names)
        lengths = [
            dict(zip(letters, (*two, *space))) for letters, two, space in _lengths(axes, channels, features, image, size)
        ]
        x = rng.integers(-128, 128, [lengths[0][letter] for letter in names[0]])
        kernel = rng.integers(-128, 128, [lengths[1][letter] for letter in names[1]])
        zero = int(rng.integers(-128, 128))

        options = {"window_strides": tuple(map(int, strides)), "padding": padding, "dimension_numbers": numbers}
        of = partial(jax.lax.conv_general_dilated, **options, rhs_dilation=tuple(map(int, dilations)))
        [eqn] = jax.make_jaxpr(of)(jnp.ones(x.shape), jnp.ones(kernel.shape)).eqns
        shifted = replace(codes(x), zero_point=jnp.full((1,) * x.ndim, zero, jnp.int32), format=Uniform(8, symmetric=False))
        unsigned = replace(shifted, qvalue=jnp.asarray(x + 128, jnp.uint8), zero_point=shifted.zero_point + 128)
        found = jax.jit(partial(conv, params=eqn.params))(unsigned, codes(kernel))
        exact = of(jnp.asarray(x - zero, jnp.int32), jnp.asarray(kernel, jnp.int32))
        np.testing.assert_array_equal(found, exact.astype(jnp.float32))


def _lengths(axes: str, channels: int, features: int, image: Any, size: Any) -> list[Any]:
    return [("NC" + axes, (2, channels), image), ("IO" + axes, (channels, features), size)]


def test_a_channel_of_few_becomes_many() -> None:
    """The folded form is taken where XLA's own is slow, and has fast loops itself."""
    assert not vectored(16, 16)
    assert vectored(32, 32)
    shapes = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.int8), jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.int8)

    def of(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    [eqn] = jax.make_jaxpr(of)(*shapes).eqns
    options = {**eqn.params, "preferred_element_type": np.dtype(np.int32)}
    text = jax.jit(lambda x, kernel: integers(x, kernel, options, None)).lower(*shapes).compile().as_text()
    assert "s32[2,8,4,32]" in text


@pytest.mark.parametrize("features", [32, 20])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_dot_of_one_row(features: int, flipped: bool) -> None:
    rng = np.random.default_rng()
    row, weights = (codes(rng.integers(-128, 128, shape)) for shape in ((1, 70), (70, features)))
    numbers = (((0,), (1,)), ((), ())) if flipped else (((1,), (0,)), ((), ()))
    params = {"dimension_numbers": numbers, "precision": None, "preferred_element_type": None}
    sides = (weights, row) if flipped else (row, weights)
    found = jax.jit(lambda lhs, rhs: dot(lhs, rhs, params))(*sides)
    np.testing.assert_array_equal(found, jax.lax.dot_general(*(np.asarray(side.qvalue, np.int64) for side in sides), numbers))
