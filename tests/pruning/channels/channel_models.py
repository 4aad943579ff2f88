"""Small models of every structure that couples channels: name -> function that makes (apply, variables, inputs, keywords)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lepton_jax.core.paths import path_str
from lepton_jax.models import ResNetCifar


def fill(shapes, seed=0):
    """Random values without a zero anywhere: biases and statistics too, so that dead channels are not silent by luck."""
    rng = np.random.default_rng(seed)

    def one(key_path, leaf):
        name = path_str(key_path).split("/")[-1]
        noise = rng.standard_normal(leaf.shape)
        if name == "var":
            noise = 0.5 + np.abs(noise)
        elif name == "scale":
            noise = 1 + 0.3 * noise
        else:
            noise = noise / max(1.0, np.sqrt(np.prod(leaf.shape[:-1], initial=1.0)))
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def images(batch=2, size=6, channels=3):
    return jnp.asarray(np.random.default_rng(1).standard_normal((batch, size, size, channels)), jnp.float32)


def tokens(batch=2, length=5, vocabulary=7):
    return jnp.asarray(np.random.default_rng(1).integers(0, vocabulary, (batch, length)), jnp.int32)


def linen(module, *inputs, mutable=False, rngs=None, **keywords):
    """(apply, variables, inputs, keywords) of a Linen module; with `mutable`, its train mode."""
    rngs = rngs or {}
    shapes = jax.eval_shape(lambda *xs: module.init({"params": jax.random.key(0), **rngs}, *xs, **keywords), *inputs)

    def apply(variables, *xs, **arrays):
        return module.apply(variables, *xs, mutable=["batch_stats"] if mutable else False, **arrays, **keywords)

    return apply, fill(shapes), inputs, {"rngs": rngs} if rngs else {}


def conv_bn(features, size=3, groups=1, stride=1, train=False):
    """Convolution with bias, batch norm, relu: the bias is what makes dead channels speak."""
    return nn.Sequential(
        [
            nn.Conv(features, (size, size), stride, feature_group_count=groups),
            nn.BatchNorm(use_running_average=not train),
            nn.relu,
        ]
    )


def resnet(shortcut, train):
    model = ResNetCifar(depth=8, features=4, classes=3, shortcut=shortcut)
    return linen(model, images(size=8), mutable=train, train=train)


class Vgg(nn.Module):
    """Flatten: each channel is as many inputs of the dense layer as there are pixels."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(conv_bn(6)(x), (2, 2), (2, 2))
        x = nn.avg_pool(conv_bn(8)(x), (3, 3), (1, 1), "SAME")
        x = nn.sigmoid(nn.Dense(10)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(3):
            y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = jnp.concatenate([x, nn.Conv(4, (3, 3))(y)], axis=-1)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


class MobileNet(nn.Module):
    """Inverted residuals around depthwise convolutions, relu6."""

    @nn.compact
    def __call__(self, x):
        x = conv_bn(6)(x)
        for stride in (1, 1, 2):
            y = nn.relu6(nn.BatchNorm(use_running_average=True)(nn.Conv(12, (1, 1))(x)))
            y = nn.Conv(12, (3, 3), stride, feature_group_count=12)(y)
            y = nn.relu6(nn.BatchNorm(use_running_average=True)(y))
            y = nn.BatchNorm(use_running_average=True)(nn.Conv(6, (1, 1))(y))
            x = x + y if stride == 1 else y
        return nn.Dense(3)(x.mean((1, 2)))


class Grouped(nn.Module):
    """Grouped convolutions and group norms: whole groups go."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
        x = nn.gelu(nn.GroupNorm(4)(nn.Conv(16, (3, 3), feature_group_count=4)(x)))
        return nn.Dense(3)(nn.Conv(10, (1, 1))(x).mean((1, 2)))


class SqueezeExcite(nn.Module):
    """Channels gated by what their means say."""

    @nn.compact
    def __call__(self, x):
        x = conv_bn(8)(x)
        gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
        return nn.Dense(3)((conv_bn(8)(x) * gate[:, None, None, :]).mean((1, 2)))


class Shuffle(nn.Module):
    """Channel split, grouped convolution, concatenation, channel shuffle."""

    @nn.compact
    def __call__(self, x):
        x = conv_bn(16)(x)
        for _ in range(2):
            left, right = jnp.split(x, 2, axis=-1)
            right = conv_bn(8, 1)(conv_bn(8, groups=4)(conv_bn(8, 1)(right)))
            x = jnp.concatenate([left, right], axis=-1)
            x = x.reshape(*x.shape[:3], 2, 8).swapaxes(3, 4).reshape(x.shape)
        return nn.Dense(3)(x.mean((1, 2)))


class UNet(nn.Module):
    """Skips across scales by concatenation; transposed convolution and nearest-neighbour resizing."""

    @nn.compact
    def __call__(self, x):
        a = conv_bn(4)(x)
        b = conv_bn(6)(nn.max_pool(a, (2, 2), (2, 2)))
        c = conv_bn(6, stride=2)(b)
        up = jax.image.resize(c, (*b.shape[:3], 6), "nearest")
        d = conv_bn(5)(jnp.concatenate([up, b], axis=-1))
        e = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(d)
        return nn.Conv(2, (1, 1))(nn.leaky_relu(jnp.concatenate([e, a], axis=-1)))


def rotate(x):
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[None, :, None, None] * 10.0 ** (-jnp.arange(half) / half)[None, None, None, :]
    low, high = x[..., :half], x[..., half:]
    return jnp.concatenate([low * jnp.cos(angles) - high * jnp.sin(angles), low * jnp.sin(angles) + high * jnp.cos(angles)], -1)


def rotate_interleaved(x):
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[None, :, None, None] * 10.0 ** (-jnp.arange(half) / half)[None, None, None, :]
    even, odd = x[..., ::2], x[..., 1::2]
    turned = [even * jnp.cos(angles) - odd * jnp.sin(angles), even * jnp.sin(angles) + odd * jnp.cos(angles)]
    return jnp.stack(turned, axis=-1).reshape(x.shape)


class Attention(nn.Module):
    """Causal attention: one dense layer for q, k and v, rotary, key and value heads shared by query heads."""

    heads: int = 4
    key_heads: int = 2
    size: int = 4
    fused: bool = False

    @nn.compact
    def __call__(self, x):
        batch, length, width = x.shape
        if self.fused:
            qkv = nn.Dense(3 * self.heads * self.size)(x).reshape(batch, length, 3, self.heads, self.size)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        else:
            q = nn.Dense(self.heads * self.size)(x).reshape(batch, length, self.heads, self.size)
            k, v = (
                jnp.repeat(
                    nn.Dense(self.key_heads * self.size)(x).reshape(batch, length, self.key_heads, self.size),
                    self.heads // self.key_heads,
                    axis=2,
                )
                for _ in range(2)
            )
            q, k = rotate(q), rotate_interleaved(k)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(self.size)
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = nn.softmax(jnp.where(causal[None, None], scores, -1e9))
        return nn.Dense(width)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, -1))


class Block(nn.Module):
    """Pre-norm attention and a gated layer pair, by residuals."""

    kind: str = "gqa"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.RMSNorm()(x) if self.kind != "mha" else nn.LayerNorm()(x)
        mha = nn.MultiHeadDotProductAttention(2, qkv_features=8)
        x = x + (mha(y, y) if self.kind == "mha" else Attention(fused=self.kind == "fused")(y))
        y = nn.LayerNorm()(x)
        y = nn.Dense(6)(nn.silu(nn.Dense(10, name="gate")(y)) * nn.Dense(10, name="up")(y))
        if self.dropout:
            y = nn.Dropout(self.dropout, deterministic=False)(y)
        return x + y, None


class Transformer(nn.Module):
    """Blocks between an embedding and logits, which may share the table."""

    kind: str = "gqa"
    depth: int = 1
    tied: bool = False
    scan: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(7, 6)
        x = embed(x) + self.param("position", nn.initializers.normal(), (1, 5, 6))
        if self.scan:
            body = nn.remat(Block, prevent_cse=False)
            split = {"params": True, "dropout": True}
            blocks = nn.scan(body, variable_axes={"params": 0}, split_rngs=split, length=self.depth)
            x, _ = blocks(self.kind, self.dropout)(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Block(self.kind, self.dropout)(x)
        x = nn.LayerNorm()(x)
        return embed.attend(x) if self.tied else nn.Dense(3)(x)


class Lstm(nn.Module):
    """A recurrent layer and a head."""

    optimized: bool = True

    @nn.compact
    def __call__(self, x):
        cell = nn.OptimizedLSTMCell(6) if self.optimized else nn.LSTMCell(6)
        x = nn.RNN(cell)(x)
        x = nn.RNN(nn.GRUCell(5))(x)
        return nn.Dense(3)(x[:, -1])


class NnxNet(nnx.Module):
    """An NNX model, through split and merge."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.hidden = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(nnx.tanh(self.hidden(x)))


def nnx_net(train):
    graph, state = nnx.split(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))))

    def apply(state, x):
        model = nnx.merge(graph, state)
        model.train() if train else model.eval()
        out = model(x)
        return (out, nnx.state(model, nnx.BatchStat)) if train else out

    return apply, fill(state), (images(),), {}


def derivative_rules():
    """Functions with derivative rules of their own, plain parameters."""

    @jax.custom_vjp
    def rounded(x):
        return jnp.round(8 * x) / 8

    rounded.defvjp(lambda x: (rounded(x), x), lambda x, ct: (ct * jnp.cos(x),))

    @jax.custom_jvp
    def hinge(x):
        return jnp.maximum(x, 0.1 * x)

    hinge.defjvp(lambda primals, tangents: (hinge(*primals), tangents[0] * jnp.where(primals[0] > 0, 2.0, 0.5)))

    def apply(variables, x):
        y = hinge(x @ variables["a"]) + variables["c"][None]
        return rounded(y @ variables["b"]) @ variables["d"]

    shapes = {"a": (3, 8), "b": (8, 6), "c": (8,), "d": (6, 2)}
    variables = fill({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})
    return apply, variables, (images(1, 3)[0, 0],), {}


def fused_rules():
    """Rules that save arguments and results of like shapes and unlike channels; one argument is not differentiated."""

    @jax.custom_vjp
    def layer(x, kernel):
        return jnp.tanh(x @ kernel)

    def forward(x, kernel):
        y = layer(x, kernel)
        return y, (x, y, kernel)

    def backward(saved, ct):
        x, y, kernel = saved
        ct = ct * (1 - y**2)
        return ct @ kernel.T, x.T @ ct

    layer.defvjp(forward, backward)

    @jax.custom_jvp
    def blend(x, y, amount):
        return amount * x + (1 - amount) * y

    @blend.defjvp
    def _(primals, tangents):
        x, y, amount = primals
        dx, dy, _ = tangents
        return blend(x, y, amount), amount * dx + (1 - amount) * dy

    def apply(variables, x):
        h = layer(jnp.sin(x @ variables["a"]), variables["b"])
        mixed = blend(h, h * variables["c"][None], jnp.linspace(0.1, 0.9, 8)[None])
        return mixed @ variables["d"]

    shapes = {"a": (3, 8), "b": (8, 8), "c": (8,), "d": (8, 2)}
    variables = fill({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})
    return apply, variables, (images(1, 3)[0, 0],), {}


def sequence():
    return jnp.asarray(np.random.default_rng(2).standard_normal((2, 4, 3)), jnp.float32)


def with_dropout(**options):
    return linen(Transformer(dropout=0.4, **options), tokens(), rngs={"dropout": jax.random.key(3)})


MODELS = {
    "resnet_a_eval": lambda: resnet("pad", False),
    "resnet_a_train": lambda: resnet("pad", True),
    "resnet_b_eval": lambda: resnet("projection", False),
    "resnet_b_train": lambda: resnet("projection", True),
    "vgg": lambda: linen(Vgg(), images()),
    "densenet": lambda: linen(DenseNet(), images()),
    "mobilenet": lambda: linen(MobileNet(), images()),
    "grouped": lambda: linen(Grouped(), images()),
    "squeeze_excite": lambda: linen(SqueezeExcite(), images()),
    "shuffle": lambda: linen(Shuffle(), images()),
    "unet": lambda: linen(UNet(), images(size=8)),
    "transformer_mha": lambda: linen(Transformer(kind="mha"), tokens()),
    "transformer_fused": lambda: linen(Transformer(kind="fused"), tokens()),
    "transformer_gqa": lambda: linen(Transformer(kind="gqa"), tokens()),
    "transformer_tied": lambda: linen(Transformer(kind="mha", tied=True), tokens()),
    "transformer_scan": lambda: linen(Transformer(kind="gqa", depth=3, scan=True), tokens()),
    "dropout": lambda: with_dropout(kind="mha"),
    "dropout_scan": lambda: with_dropout(kind="fused", depth=2, scan=True, tied=True),
    "lstm": lambda: linen(Lstm(), sequence()),
    "lstm_plain": lambda: linen(Lstm(optimized=False), sequence()),
    "nnx_eval": lambda: nnx_net(False),
    "nnx_train": lambda: nnx_net(True),
    "derivative_rules": derivative_rules,
    "fused_rules": fused_rules,
}
