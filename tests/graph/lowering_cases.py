"""Random convolutions and pools, with their derivatives, for the tests of their forms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUTS = {1: [("NHC", "HIO", "NHC"), ("NCH", "OIH", "NCH")], 2: [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]}
KINDS = ("small", "plain", "depthwise", "grouped", "pointwise")


def convolution(seed: int, kind: str) -> tuple[Callable[..., Any], tuple[np.ndarray, ...], str]:
    """A random convolution of a kind: it and both derivatives as one function, its float64 operands, and what it is."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    nd = int(rng.integers(1, 3))
    numbers = LAYOUTS[nd][rng.integers(2)]
    small = kind == "small" or rng.random() < 0.2
    image = rng.integers(1, 4 if small else 9, nd)
    kernel = np.ones(nd, int) if kind == "pointwise" else rng.integers(2 if small else 1, 5, nd)
    strides, holes, dilations = rng.integers(1, 4, nd), np.ones(nd, int), np.ones(nd, int)
    if rng.random() < 0.25:
        strides, holes = np.ones(nd, int), rng.integers(1, 3, nd)
    if rng.random() < 0.3:
        dilations = rng.integers(1, 3, nd)
    span, wide = (kernel - 1) * dilations + 1, (image - 1) * holes + 1
    # No more than the kernel reaches: of less than no padding, in the derivative, XLA itself computes nonsense at times.
    padding = [tuple(map(int, rng.integers(0, s, 2))) for s in span]
    # So much that there is a result at all.
    padding = [(low, max(high, int(s - w - low))) for (low, high), s, w in zip(padding, span, wide)]
    groups = {"depthwise": int(rng.integers(1, 5)), "grouped": 2}.get(kind, 1)
    each = 1 if kind == "depthwise" else int(rng.integers(1, 4))
    features = groups * int(rng.integers(1, 3))
    batch = int(rng.integers(1, 4))
    sizes = {**dict(zip("HW", image)), "N": batch, "C": groups * each}
    x = rng.standard_normal([sizes[axis] for axis in numbers[0]])
    sizes = {**dict(zip("HW", kernel)), "I": each, "O": features}
    k = rng.standard_normal([sizes[axis] for axis in numbers[1]])

    def conv(x: Any, k: Any) -> Any:
        return lax.conv_general_dilated(
            x, k, strides, padding, holes, dilations, dimension_numbers=numbers, feature_group_count=groups
        )

    said = f"{numbers} {image=} {kernel=} {strides=} {holes=} {dilations=} {padding=} {groups=} {each=} {features=} {batch=}"
    out = jax.eval_shape(conv, jax.ShapeDtypeStruct(x.shape, np.float32), jax.ShapeDtypeStruct(k.shape, np.float32))
    return with_derivatives(conv), (rng.standard_normal(out.shape), x, k), said


def pool(seed: int) -> tuple[Callable[..., Any], tuple[np.ndarray, ...], str]:
    """A random pool and its derivative."""
    rng = np.random.default_rng([seed, 99])
    nd, largest = 1 + seed // 2 % 2, bool(seed % 2)
    image, kernel = rng.integers(1, 8, nd), rng.integers(2 if seed % 3 else 1, 4, nd)
    strides = kernel if rng.random() < 0.4 else rng.integers(1, 4, nd)
    if rng.random() < 0.5:
        image = -(-image // kernel) * kernel
    padding = [tuple(map(int, rng.integers(0, k, 2))) for k in kernel] if rng.random() < 0.5 else [(0, 0)] * nd
    padding = [(low, max(high, int(k - n - low))) for (low, high), k, n in zip(padding, kernel, image)]
    first = rng.random() < 0.5
    shape = (2, *map(int, image), 3) if not first else (2, 3, *map(int, image))
    x = rng.integers(-2, 3, shape).astype(float) if rng.random() < 0.5 else rng.standard_normal(shape)  # ties
    ends = [(0, 0), *padding, (0, 0)] if not first else [(0, 0), (0, 0), *padding]
    start, join = (-np.inf, lax.max) if largest else (0.0, lax.add)

    def reduced(x: Any) -> Any:
        initial = np.asarray(start, x.dtype)
        windows, steps = ((1, 1, *map(int, n)) if first else (1, *map(int, n), 1) for n in (kernel, strides))
        return lax.reduce_window(x, initial, join, windows, steps, ends)

    out = jax.eval_shape(reduced, jax.ShapeDtypeStruct(x.shape, np.float32))
    return (
        with_derivatives(reduced),
        (rng.standard_normal(out.shape), x),
        f"{largest=} {image=} {kernel=} {strides=} {padding=}",
    )


def with_derivatives(function: Callable[..., Any]) -> Callable[..., Any]:
    """Function of a cotangent and operands: the result and the derivatives by all operands."""

    def both(cotangent: Any, *operands: Any) -> Any:
        out, pulled = jax.vjp(function, *operands)
        return out, pulled(cotangent)

    return both


def cast(operands: Any, dtype: Any) -> Any:
    """The operands in another dtype."""
    return tuple(jnp.asarray(operand, dtype) for operand in operands)
