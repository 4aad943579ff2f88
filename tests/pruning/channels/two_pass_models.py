"""Small models whose norms take the variance in two passes: of hidden layers, of kernels (weight standardisation)."""

import jax
import jax.numpy as jnp
import numpy as np
from channel_models import fill, images, linen, tokens
from flax import linen as nn
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")


def variance(x, axes):
    """As `jnp.var`, by hand: no jit around it."""
    return jnp.mean(jnp.square(x - jnp.mean(x, axes, keepdims=True)), axes, keepdims=True)


class HaikuNorm(nn.Module):
    """As `hk.LayerNorm`: the variance by `jnp.var`, the scale folded into its inverse root."""

    create: bool = True

    @nn.compact
    def __call__(self, x):
        mean, found = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        inv = lax.rsqrt(found + 1e-5)
        if not self.create:
            return (x - mean) * inv
        scale, offset = (self.param(name, nn.initializers.ones, (x.shape[-1],)) for name in ("scale", "offset"))
        one = (1,) * (x.ndim - 1)
        return scale.reshape(*one, -1) * inv * (x - mean) + offset.reshape(*one, -1)


class PlainNorm(nn.Module):
    """Written by hand, squares by multiplication, the deviation clipped and divided by."""

    @nn.compact
    def __call__(self, x):
        centred = x - x.mean(-1, keepdims=True)
        deviation = jnp.sqrt(jnp.maximum((centred * centred).sum(-1, keepdims=True) / x.shape[-1], 1e-6))
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],))
        return centred / deviation * gain.reshape((1,) * (x.ndim - 1) + (-1,))


class Mixer(nn.Module):
    norm: type[nn.Module]
    depth: int = 2
    scan: bool = False

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, 8)(ids)
        if self.scan:
            stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            x, _ = stack(self.norm)(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Layer(self.norm)(x, None)
        return nn.Dense(3)(self.norm()(x))


class Layer(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(self.norm()(x)))), None


def standardised(kernel):
    """As BiT-ResNet: each output's weights with mean 0 and variance 1."""
    return (kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)) / jnp.sqrt(variance(kernel, (0, 1, 2)) + 1e-10)


def scaled(kernel, gain):
    """As NFNet: the fan-in and a learned gain in one scale; the mean is shifted away last."""
    mean, found = jnp.mean(kernel, (0, 1, 2), keepdims=True), jnp.var(kernel, (0, 1, 2), keepdims=True)
    fan_in = np.prod(kernel.shape[:-1])
    scale = lax.rsqrt(jnp.maximum(found * fan_in, 1e-4)) * gain.reshape(1, 1, 1, -1)
    return kernel * scale - mean * scale


class StandardConv(nn.Module):
    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (self.size, self.size, x.shape[-1], self.features))
        return lax.conv_general_dilated(x, standardised(kernel), (self.stride,) * 2, "SAME", dimension_numbers=NHWC)


class TwoPassGroupNorm(nn.Module):
    groups: int

    @nn.compact
    def __call__(self, x):
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
        x = ((grouped - mean) * lax.rsqrt(variance(grouped, (1, 2, 4)) + 1e-5)).reshape(x.shape)
        scale, bias = (self.param(name, nn.initializers.ones, (x.shape[-1],)) for name in ("scale", "bias"))
        return x * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)


class Bit(nn.Module):
    """Pre-activation bottlenecks with group norm and standardised kernels."""

    groups: int = 2

    @nn.compact
    def __call__(self, x):
        x = StandardConv(8)(x)
        for width, stride in ((8, 1), (12, 2)):
            y = nn.relu(TwoPassGroupNorm(self.groups)(x))
            short = x if width == x.shape[-1] and stride == 1 else StandardConv(width, 1, stride)(y)
            y = nn.relu(TwoPassGroupNorm(self.groups)(StandardConv(6, 1)(y)))
            y = nn.relu(TwoPassGroupNorm(self.groups)(StandardConv(6, 3, stride)(y)))
            x = short + StandardConv(width, 1)(y)
        return nn.Dense(3)(nn.relu(TwoPassGroupNorm(self.groups)(x)).mean((1, 2)))


class ScaledConv(nn.Module):
    features: int
    size: int = 3
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = scaled(
            self.param("kernel", nn.initializers.normal(), shape), self.param("gain", nn.initializers.ones, (self.features,))
        )
        bias = self.param("bias", nn.initializers.zeros, (1, 1, 1, self.features))
        return bias + lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=self.groups
        )


class NfNet(nn.Module):
    """No norm at all: scaled standardised kernels, a squeeze and excite, a skip gain."""

    @nn.compact
    def __call__(self, x):
        x = ScaledConv(8)(x)
        for _ in range(2):
            y = ScaledConv(6, 1)(nn.gelu(x) * 1.7)
            y = ScaledConv(6, 3, groups=2)(nn.gelu(y) * 1.7)
            y = ScaledConv(8, 1)(nn.gelu(y) * 1.7)
            gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(y.mean((1, 2))))))
            gain = self.param(f"skip_{_}", nn.initializers.ones, ())
            x = x + 2 * gate[:, None, None] * y * gain
        return nn.Dense(3)(nn.gelu(x).mean((1, 2)))


def plain_torch():
    """A plain function with PyTorch's layouts: (out, in, h, w), channels first, layer norm over channels."""
    shapes = {"a": (6, 3, 3, 3), "b": (6, 6, 3, 3), "g": (1, 6, 1, 1), "head": (4, 6)}

    def standard(kernel):
        return (kernel - kernel.mean((1, 2, 3), keepdims=True)) * lax.rsqrt(variance(kernel, (1, 2, 3)) + 1e-5)

    def apply(v, x):
        x = lax.conv(x.transpose(0, 3, 1, 2), standard(v["a"]), (1, 1), "SAME")
        x = nn.relu((x - x.mean(1, keepdims=True)) * lax.rsqrt(variance(x, (1,)) + 1e-5) * v["g"])
        return lax.conv(x, standard(v["b"]), (1, 1), "SAME").mean((2, 3)) @ v["head"].T

    return apply, fill({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}), (images(),), {}


class Remembered(nn.Module):
    """Linen's own norms in two passes, under remat: a layer norm, then a group norm."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Dense(8)(x)
            x = x + nn.remat(Remembering)()(x)
        return nn.Dense(3)(nn.silu(nn.GroupNorm(4, use_fast_variance=False)(x)).mean((1, 2)))


class Remembering(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(nn.gelu(nn.LayerNorm(use_fast_variance=False)(x)))


def by_example():
    """As Equinox: layers for one example, mapped over the batch."""
    shapes = {"in": (6, 5), "weight": (6,), "bias": (6,), "up": (8, 6), "out": (3, 8)}

    def norm(v, x):
        mean, found = jnp.mean(x, keepdims=True), jnp.maximum(0.0, jnp.var(x, keepdims=True))
        return v["weight"] * ((x - mean) * lax.rsqrt(found + 1e-5)) + v["bias"]

    def apply(v, x):
        return jax.vmap(lambda one: v["out"] @ nn.relu(v["up"] @ norm(v, v["in"] @ one)))(x)

    x = jnp.asarray(np.random.default_rng(6).standard_normal((3, 5)), jnp.float32)
    return apply, fill({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}), (x,), {}


def counts():
    """Sums over channels of what is not 0 in a silent one, though known: gates, ones, exponentials; over two axes at once."""
    shapes = {"a": (5, 6), "b": (6, 2), "p": (7, 1), "q": (1, 5)}

    def apply(v, x):
        h = x @ v["a"]
        gates = jax.nn.sigmoid(h)
        size = jnp.ones_like(h).sum(-1, keepdims=True)
        share = jnp.exp(h) / jnp.exp(h).sum(-1, keepdims=True)
        return (h * gates / gates.mean(-1, keepdims=True) / size + h * share) @ v["b"] + jnp.cosh(h).T.sum(0)[
            :, None
        ] * jnp.cosh(v["p"] * v["q"]).sum()

    x = jnp.asarray(np.random.default_rng(5).standard_normal((3, 5)), jnp.float32)
    return apply, fill({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}), (x,), {}


TWO_PASS = {
    "haiku_norm": lambda: linen(Mixer(HaikuNorm), tokens()),
    "haiku_norm_bare": lambda: linen(Mixer(lambda: HaikuNorm(create=False)), tokens()),
    "plain_norm_scan": lambda: linen(Mixer(PlainNorm, depth=3, scan=True), tokens()),
    "bit": lambda: linen(Bit(), images()),
    "bit_one_group": lambda: linen(Bit(groups=1), images()),
    "nfnet": lambda: linen(NfNet(), images()),
    "plain_torch": plain_torch,
    "remembered": lambda: linen(Remembered(), images()),
    "by_example": by_example,
    "counts": counts,
}
