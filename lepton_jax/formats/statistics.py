"""Statistics of an array that ranges are made of, the same in whatever order a program adds and compares."""

import jax.numpy as jnp

from lepton_jax.core.typing import Array

_BITS = 15
_DIGIT = 5  # sums of digits of 5 bits do not overflow below 2**27 elements


def extremes(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the smallest and largest value over `axes`, and zero among them, float32; NaN counts as 0.

    Example:
      >>> extremes(jnp.array([3.0, jnp.nan]), (0,))
      (Array([0.], dtype=float32), Array([3.], dtype=float32))
    """
    x = jnp.nan_to_num(x.astype(jnp.float32), nan=0.0, posinf=jnp.inf, neginf=-jnp.inf)
    return jnp.min(x, axes, keepdims=True, initial=0.0), jnp.max(x, axes, keepdims=True, initial=0.0)


def mean_magnitude(x: Array, axes: tuple[int, ...], above: Array | float = -1.0) -> Array:
    """Return the mean of ``|x|`` over `axes`, kept at size 1, of the elements whose magnitude exceeds `above`.

    Magnitudes are taken to 15 bits of the largest along `axes`, and summed as integers: exact in any order. NaN counts as zero;
    the mean of nothing is zero.

    Args:
      x: float32.
      axes: to reduce over.
      above: of the result's shape.

    Example:
      >>> mean_magnitude(jnp.array([[1.0, -2.0, 3.0]]), (1,)).tolist()
      [[2.0]]
    """
    magnitude = jnp.minimum(jnp.abs(jnp.nan_to_num(x, nan=0.0)), 2.0**125)  # whose reciprocal is a normal float32
    largest = jnp.max(magnitude, axes, keepdims=True, initial=0.0)
    safe = jnp.where(largest > 0, largest, 1)
    kept = magnitude > above
    whole = jnp.where(kept, jnp.round(magnitude * (1 / safe) * 2**_BITS), 0).astype(jnp.uint32)
    total, count = jnp.zeros(largest.shape), jnp.sum(kept, axes, keepdims=True, dtype=jnp.int32)
    for shift in range(0, _BITS + 1, _DIGIT):
        digits = jnp.sum(whole >> shift & (2**_DIGIT - 1), axes, keepdims=True, dtype=jnp.uint32)
        # Products with powers of two are exact: it does not matter whether they are contracted with the sum.
        total += digits.astype(jnp.float32) * 2.0 ** (shift - _BITS)
    return jnp.where(largest > 0, total / jnp.maximum(count, 1) * safe, 0)
