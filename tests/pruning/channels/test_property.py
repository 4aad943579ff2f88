"""Random networks: whatever the pieces, the plan holds exactly (in float64), or says what fixed the channels."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jax import lax
from test_exact import by_numpy, outputs_and_gradients

from lepton_jax.core.paths import flatten
from lepton_jax.pruning.channels import Random, plan

WIDTHS = (4, 8)
LENGTH = 4


class Weights:
    """Makes parameters while a network is laid out; `names` are given in order."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.tree = {}

    def __call__(self, *shape, positive=False):
        name = f"w{len(self.tree)}"
        value = self.rng.standard_normal(shape)
        if len(shape) > 1:
            value = value / np.sqrt(np.prod(shape[:-1]))
        self.tree[name] = np.abs(value) + 0.5 if positive else value
        return name


def conv1d(x, kernel, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


# Every piece takes (make weights, channels, wanted width) and returns (channels after, function (v, x) -> x).


def dense(w, c, width):
    k, b = w(c, width), w(width)
    return width, lambda v, x: x @ v[k] + v[b][None, None]


def convolution(w, c, width):
    k, b = w(3, c, width), w(width)
    return width, lambda v, x: conv1d(x, v[k]) + v[b][None, None]


def grouped(w, c, width):
    k = w(3, c // 2, width)
    return width, lambda v, x: conv1d(x, v[k], 2)


def depthwise(w, c, width):
    k, b = w(3, 1, 2 * c), w(2 * c)
    return 2 * c, lambda v, x: conv1d(x, v[k], c) + v[b][None, None]


def batch_norm(w, c, width):
    scale, bias, mean, var = w(c), w(c), w(c), w(c, positive=True)

    def apply(v, x):
        m, s = (v[n][None, None] for n in (mean, var))
        return (x - m) / jnp.sqrt(s + 1e-5) * v[scale][None, None] + v[bias][None, None]

    return c, apply


def train_norm(w, c, width):
    scale, bias = w(c), w(c)

    def apply(v, x):
        m = x.mean((0, 1), keepdims=True)
        s = jnp.maximum(0, (x**2).mean((0, 1), keepdims=True) - m**2)
        return (x - m) * (lax.rsqrt(s + 1e-3) * v[scale][None, None]) + v[bias][None, None]

    return c, apply


def layer_norm(w, c, width):
    scale, bias = w(c), w(c)

    def apply(v, x):
        m = x.mean(-1, keepdims=True)
        s = (x**2).mean(-1, keepdims=True) - m**2
        return (x - m) * lax.rsqrt(s + 1e-2) * v[scale][None, None] + v[bias][None, None]

    return c, apply


def two_pass_norm(w, c, width):
    scale = w(c)
    return c, lambda v, x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-2) * v[scale][None, None]


def group_norm(w, c, width):
    scale = w(c)

    def apply(v, x):
        y = x.reshape(*x.shape[:2], 2, c // 2)
        m = y.mean((1, 3), keepdims=True)
        s = (y**2).mean((1, 3), keepdims=True) - m**2
        return ((y - m) * lax.rsqrt(s + 1e-2)).reshape(x.shape) * v[scale][None, None]

    return c, apply


def residual(w, c, width):
    (_, first), (_, second) = dense(w, c, width), dense(w, width, c)
    return c, lambda v, x: x + second(v, jax.nn.relu(first(v, x)))


def concatenation(w, c, width):
    _, branch = convolution(w, c, width)
    return c + width, lambda v, x: jnp.concatenate([branch(v, x), x], -1)


def halves(w, c, width):
    _, branch = dense(w, c // 2, c // 2)

    def apply(v, x):
        left, right = jnp.split(x, 2, -1)
        return jnp.concatenate([right, branch(v, left)], -1)

    return c, apply


def shuffle(w, c, width):
    return c, lambda v, x: x.reshape(*x.shape[:2], 2, c // 2).swapaxes(2, 3).reshape(x.shape)


def gated(w, c, width):
    (_, up), (_, gate) = dense(w, c, width), dense(w, c, width)
    return width, lambda v, x: up(v, x) * jax.nn.sigmoid(gate(v, x))


def squeeze_excite(w, c, width):
    (_, down), (_, up) = dense(w, c, 4), dense(w, 4, c)
    return c, lambda v, x: x * jax.nn.sigmoid(up(v, jax.nn.relu(down(v, x.mean(1, keepdims=True)))))


def attention(w, c, width):
    fused, out, bias = w(c, 3 * c), w(c, c), w(3 * c)

    def apply(v, x):
        qkv = (x @ v[fused] + v[bias][None, None]).reshape(*x.shape[:2], 3, 2, c // 2)
        q, k, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(c // 2))
        return x + jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape) @ v[out]

    return c, apply


def recurrent(w, c, width):
    inner, over, bias = w(c, width), w(width, width), w(width)

    def apply(v, x):
        def step(h, slice_):
            h = jnp.tanh(slice_ @ v[inner] + h @ v[over] + v[bias][None])
            return h, h

        return lax.scan(step, jnp.zeros((x.shape[0], width), x.dtype), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    return width, apply


def stacked(w, c, width):
    kernels = w(2, c, c)
    return c, lambda v, x: lax.scan(jax.checkpoint(lambda h, k: (h + jnp.tanh(h @ k), None)), x, v[kernels])[0]


def padded(w, c, width):
    _, branch = dense(w, c, 2 * c)
    return 2 * c, lambda v, x: branch(v, x) + jnp.pad(x, ((0, 0), (0, 0), (c // 2, c - c // 2)))


def pooled(w, c, width):
    return c, lambda v, x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), "SAME")


def rotated(w, c, width):
    def apply(v, x):
        angle = jnp.arange(LENGTH, dtype=x.dtype)[None, :, None] * jnp.arange(1, c // 2 + 1, dtype=x.dtype)[None, None]
        even, odd = x[..., ::2], x[..., 1::2]
        turned = [even * jnp.cos(angle) - odd * jnp.sin(angle), even * jnp.sin(angle) + odd * jnp.cos(angle)]
        return jnp.stack(turned, -1).reshape(x.shape)

    return c, apply


def constant_gain(w, c, width):
    gain = w.rng.standard_normal(c)
    return c, lambda v, x: x * jnp.asarray(gain, x.dtype)[None, None] + 0.5


def noise(w, c, width):
    key = jax.random.key(int(w.rng.integers(100)))
    return c, lambda v, x: jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)


def softmax_over_channels(w, c, width):
    return c, lambda v, x: jax.nn.softmax(x, -1)


def accumulated(w, c, width):
    return c, lambda v, x: jnp.cumsum(x, -1)


def spectrum(w, c, width):
    return c, lambda v, x: jnp.real(jnp.fft.fft(x, axis=1))


def exponential(w, c, width):
    return c, lambda v, x: jnp.exp(-(x**2))


def mean_removed(w, c, width):
    return c, lambda v, x: x - x.mean(-1, keepdims=True)


def branched(w, c, width):
    return c, lambda v, x: lax.cond(x[0, 0, 0] > 0, jnp.tanh, lambda x: 2 * x, x)


PIECES = (
    dense,
    convolution,
    grouped,
    depthwise,
    batch_norm,
    train_norm,
    layer_norm,
    two_pass_norm,
    group_norm,
    residual,
    concatenation,
    halves,
    shuffle,
    gated,
    squeeze_excite,
    attention,
    recurrent,
    stacked,
    padded,
    pooled,
    rotated,
    constant_gain,
    noise,
    softmax_over_channels,
    accumulated,
    spectrum,
    exponential,
    mean_removed,
    branched,
)


def network(pieces, seed, flat):
    """(apply, variables) of pieces between a first dense layer and a head, over [2, LENGTH, 3]."""
    w = Weights(seed)
    c, first = dense(w, 3, 8)
    layers = [first]
    for piece, width in pieces:
        c, layer = piece(w, c, width)
        layers.append(layer)
    head = w(LENGTH * c if flat else c, 2)

    def apply(v, x):
        for layer in layers:
            x = layer(v, x)
        return (x.reshape(x.shape[0], -1) if flat else x.mean(axis=1)) @ v[head]

    return apply, w.tree


@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example(pieces=[(two_pass_norm, 4), (padded, 4)], seed=0, flat=False, fraction=0.3)
@given(
    pieces=st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(WIDTHS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**31 - 1),
    flat=st.booleans(),
    fraction=st.sampled_from([0.3, 0.5, 0.7]),
)
def test_the_plan_holds_or_says_what_is_fixed(pieces, seed, flat, fraction):
    with jax.enable_x64(True):
        apply, tree = network(pieces, seed, flat)
        variables = {name: jnp.asarray(value, jnp.float64) for name, value in tree.items()}
        x = jnp.asarray(np.random.default_rng(seed).standard_normal((2, LENGTH, 3)), jnp.float64)
        known = plan(apply, variables, x, fraction=0)
        channels = {s.place for group in known.groups for s in group.slices}
        for path, leaf in tree.items():
            for axis, n in enumerate(leaf.shape):
                assert n == 1 or (path, axis) in channels or known.fixed[path, axis]
        if not known.groups:
            return
        made = plan(apply, variables, x, fraction=fraction, criterion=Random(key=jax.random.key(seed)))
        if not made.removed:
            return
        masked, shrunk = (by_numpy(variables, made.removed, mask=mask) for mask in (True, False))
        weights = np.random.default_rng(seed).standard_normal((2, 2))
        outs, gradients = outputs_and_gradients(apply, {})(masked, weights, x)
        small_outs, small_gradients = outputs_and_gradients(made.rewrite(apply), {})(shrunk, weights, x)
        expected = flatten((outs, by_numpy(gradients, made.removed, mask=False)))
        largest = max(np.abs(leaf).max(initial=0) for leaf in expected.values())
        for (path, leaf), got in zip(expected.items(), flatten((small_outs, small_gradients)).values()):
            assert got.shape == leaf.shape, path
            assert np.abs(leaf - np.asarray(got)).max(initial=0) <= 1e-9 * largest, (path, str(made))
