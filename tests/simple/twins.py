"""Models written four times: unrolled, under a scan, and either with weights as (out, in) or OIHW; the same function."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths


class Twin(NamedTuple):
    """A model in one of its ways to be written; `leaves` brings the unrolled variables into its own form."""

    name: str
    apply: Any
    leaves: Any

    def run(self, variables, x):
        """Apply it, compiled once for all tests."""
        return np.asarray(_compiled(self.apply)(variables, x))


_compiled = lru_cache(jax.jit)


class Family(NamedTuple):
    """Twins, and what makes variables of the unrolled one, and an input, from a seed."""

    twins: list[Twin]
    draw: Any


def turned(w):
    """(..., in, out) to (..., out, in), or HWIO to OIHW."""
    return jnp.moveaxis(w, (-1, -2), (-4, -3)) if w.ndim > 3 and w.shape[-4] == w.shape[-3] == 3 else jnp.swapaxes(w, -1, -2)


def stacked(layers):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def with_kernels(change, tree):
    return paths.replace(tree, {path: change(leaf) for path, leaf in paths.flatten(tree).items() if path.endswith("kernel")})


def norm(v, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * v["scale"][None, None] + v["bias"][None, None]


def attention_block(dense, v, x):
    h = norm(v["norm"], x)
    heads = {name: dense(v[name]["kernel"], h).reshape(*h.shape[:2], 2, -1) for name in ("q", "k", "v")}
    heads = {name: part + v[name]["bias"][None, None] for name, part in heads.items()}  # (heads, dim)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", heads["q"], heads["k"]) / 3)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, heads["v"]).reshape(h.shape)
    x = x + dense(v["o"]["kernel"], mixed)
    return x + dense(v["down"]["kernel"], jax.nn.gelu(dense(v["up"]["kernel"], x)))


def conv_block(conv, v, x):
    h = conv(v["a"]["kernel"], x) * v["norm"]["scale"][None, None, None] + v["norm"]["bias"][None, None, None]
    return x + conv(v["b"]["kernel"], jax.nn.relu(h))


def hwio(kernel, x):
    """A convolution, or a grouped one where the kernel has fewer input channels."""
    numbers, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def oihw(kernel, x):
    numbers, groups = ("NHWC", "OIHW", "NHWC"), x.shape[-1] // kernel.shape[1]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def apply_unrolled(block, ends, v, x):
    x = ends[0](v, x)
    for layer in v["layers"]:
        x = block(layer, x)
    return ends[1](v, x)


def apply_scanned(block, ends, v, x):
    x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), ends[0](v, x), v["layers"])
    return ends[1](v, x)


def family(block, plain, other, first, last):
    """Four twins of a model of equal blocks, `plain` and `other` being its product in the two layouts."""

    def ends(product):
        return partial(first, product), partial(last, product)

    def same(tree):
        return tree

    def stack(change, tree):
        return with_kernels(change, {**tree, "layers": stacked(tree["layers"])})

    return [
        Twin("unrolled", partial(apply_unrolled, partial(block, plain), ends(plain)), same),
        Twin("scanned", partial(apply_scanned, partial(block, plain), ends(plain)), partial(stack, same)),
        Twin("turned", partial(apply_unrolled, partial(block, other), ends(other)), partial(with_kernels, turned)),
        Twin("scanned and turned", partial(apply_scanned, partial(block, other), ends(other)), partial(stack, turned)),
    ]


def transformer_leaves(seed, depth=3, width=16):
    rng = np.random.default_rng(seed)

    def layer(size):
        shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
        shapes |= {"up": (width, 2 * width), "down": (2 * width, width)}
        made: dict[str, Any] = {name: {"kernel": size * rng.normal(size=shape) / 4} for name, shape in shapes.items()}
        for name in ("q", "k", "v"):
            made[name]["bias"] = rng.normal(size=(2, width // 2))
        return {**made, "norm": {"scale": rng.uniform(0.5, 2, width), "bias": rng.normal(size=width)}}

    variables = {
        "first": {"kernel": rng.normal(size=(8, width))},
        "layers": [layer(10.0**-number) for number in range(depth)],
        "last": {"kernel": rng.normal(size=(width, 12)) / 4},
    }
    return jax.tree.map(jnp.float32, variables), jnp.float32(rng.normal(size=(4, 5, 8)))


def convolutions_leaves(seed, depth=3, width=8):
    rng = np.random.default_rng(seed)

    def layer(size):
        return {
            "a": {"kernel": size * rng.normal(size=(3, 3, width, width)) / 8},
            "b": {"kernel": size * rng.normal(size=(3, 3, width, width)) / 8},
            "norm": {"scale": rng.uniform(0.5, 2, width), "bias": rng.normal(size=width)},
        }

    first = {"kernel": rng.normal(size=(3, 3, 4, width)) / 4}
    variables = {"first": first, "layers": [layer(10.0**-number) for number in range(depth)]}
    return jax.tree.map(jnp.float32, variables), jnp.float32(rng.normal(size=(4, 6, 6, 4)))


def depthwise_block(conv, v, x):
    h = jax.nn.relu(conv(v["a"]["kernel"], x) + v["a"]["bias"][None, None, None])
    h = jax.nn.relu(conv(v["deep"]["kernel"], h) + v["deep"]["bias"][None, None, None])
    return x + (conv(v["b"]["kernel"], h) + v["b"]["bias"][None, None, None])


def depthwise_leaves(seed, depth=3, width=6):
    """Channels of ranges from 100 to 0.01."""
    rng = np.random.default_rng(seed)

    def layer():
        size = 10 ** rng.uniform(-2, 2, width)
        shapes = {"a": (3, 3, width, width), "deep": (3, 3, 1, width), "b": (3, 3, width, width)}
        made = {name: {"kernel": rng.normal(size=shape) / 4, "bias": rng.normal(size=width)} for name, shape in shapes.items()}
        made["a"] = {name: part * size for name, part in made["a"].items()}
        made["deep"]["kernel"] = made["deep"]["kernel"] / size
        return made

    first = {"kernel": rng.normal(size=(3, 3, 2, width)) / 4}
    variables = {"first": first, "layers": [layer() for _ in range(depth)]}
    return jax.tree.map(jnp.float32, variables), jnp.float32(rng.normal(size=(4, 5, 5, 2)))


FAMILIES = {
    "transformer": Family(
        family(
            attention_block,
            lambda w, x: x @ w,
            lambda w, x: x @ w.T,
            lambda dense, v, x: dense(v["first"]["kernel"], x),
            lambda dense, v, x: dense(v["last"]["kernel"], x),
        ),
        transformer_leaves,
    ),
    "convolutions": Family(
        family(conv_block, hwio, oihw, lambda conv, v, x: conv(v["first"]["kernel"], x), lambda conv, v, x: x.mean((1, 2))),
        convolutions_leaves,
    ),
}
"""Their layers are of magnitude 1, 0.1 and 0.01."""

DEPTHWISE = Family(
    family(depthwise_block, hwio, oihw, lambda conv, v, x: conv(v["first"]["kernel"], x), lambda conv, v, x: x.mean((1, 2))),
    depthwise_leaves,
)
"""Convolutions, one of them depthwise, with biases, in residual blocks."""
