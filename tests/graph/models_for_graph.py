"""Small models of every kind that a graph must cope with: (name, apply, variables, inputs, keywords)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class ConvNet(nn.Module):
    """Conv, batch norm, a residual, pooling, a head."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        y = nn.Conv(self.width, (3, 3), strides=2, name="Down")(x)
        z = nn.BatchNorm(use_running_average=not train, name="Norm")(nn.Conv(self.width, (1, 1), strides=2, name="Short")(x))
        x = nn.relu(y + z).mean(axis=(1, 2))
        return nn.Dense(3)(x)


class Block(nn.Module):
    """Attention and a gated MLP; a scan body."""

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.RMSNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.1, deterministic=deterministic)(y, y)
        y = nn.LayerNorm()(x)
        x = x + nn.Dense(6, name="down")(nn.gelu(nn.Dense(8, name="gate")(y)) * nn.Dense(8, name="up")(y))
        return nn.Dropout(0.2, deterministic=deterministic)(x), None


class Transformer(nn.Module):
    """Tied embeddings around blocks, rematerialised and scanned."""

    @nn.compact
    def __call__(self, tokens, deterministic=True):
        embed = nn.Embed(11, 6)
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False, static_argnums=(2,)),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=3,
        )
        x, _ = stack()(embed(tokens), deterministic)
        return embed.attend(x)


class Recurrent(nn.Module):
    """An LSTM."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])


class Nnx(nnx.Module):
    """An NNX model with a batch norm and dropout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


@jax.custom_vjp
def scaled(x, w):
    """x @ w, whose derivative to w is halved."""
    return x @ w


scaled.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, 0.5 * saved[0].T @ g))


@jax.custom_jvp
def clipped(x):
    """min(x, 1), whose derivative is 1 everywhere."""
    return jnp.minimum(x, 1.0)


clipped.defjvps(lambda g, _, x: g)


def control_flow(variables, x):
    """Everything else: cond, switch, while under vmap, fori, nested scan, sort, gather."""
    w = variables["w"]
    x = clipped(scaled(x, w))
    x = jax.lax.cond(x.sum() > 0, lambda a: a @ w, lambda a: jnp.sin(a), x)
    x = jax.lax.switch(jnp.argmax(variables["b"]), [jnp.cos, lambda a: a * 2, lambda a: a @ w], x)
    x = jax.lax.fori_loop(0, 3, lambda i, a: jnp.tanh(a @ w) + i, x)
    counts = jax.vmap(lambda r: jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1.5, c[1] + 1), (r[0], 0)))(x)
    x = x + jax.lax.stop_gradient(counts[1])[:, None].astype(x.dtype)

    def inner(carry, row):
        carry, _ = jax.lax.scan(lambda c, _: (c * 0.5 + row, c), carry, None, length=2, reverse=True)
        return carry, carry[::-1]

    last, rows = jax.lax.scan(inner, variables["b"], x, unroll=2)
    return last, jnp.take(rows, jnp.array([1, 0]), axis=0), jnp.sort(x, axis=1)


def _linen(model, inputs, mutable=(), **keywords):
    def init(rngs):
        return model.init(rngs, *inputs, **keywords)

    variables = jax.jit(init)({"params": jax.random.key(0), "dropout": jax.random.key(1)})

    def apply(variables, *inputs, rngs=None):
        return model.apply(variables, *inputs, **keywords, rngs=rngs, mutable=list(mutable) or False)

    return apply, variables, inputs


def _image():
    return (jax.random.normal(jax.random.key(2), (2, 6, 6, 2)),)


def _tokens():
    return (jax.random.randint(jax.random.key(3), (2, 5), 0, 11),)


def _nnx():
    graphdef, state = nnx.split(Nnx(nnx.Rngs(0)))

    def split_apply(state, x):
        model = nnx.merge(graphdef, state)
        y = model(x)
        return y, nnx.state(model)

    return split_apply, state, _image(), {}


def _plain():
    variables = {"w": jax.random.normal(jax.random.key(8), (3, 3)), "b": jnp.array([0.1, 0.3, -0.2])}
    return control_flow, variables, (jax.random.normal(jax.random.key(5), (2, 3)),), {}


_MAKERS = {
    "convnet eval": lambda: (*_linen(ConvNet(), _image(), train=False), {}),
    "convnet train": lambda: (*_linen(ConvNet(), _image(), ("batch_stats",), train=True), {}),
    "transformer eval": lambda: (*_linen(Transformer(), _tokens()), {}),
    "transformer train": lambda: (
        *_linen(Transformer(), _tokens(), deterministic=False),
        {"rngs": {"dropout": jax.random.key(7)}},
    ),
    "lstm": lambda: (*_linen(Recurrent(), (jax.random.normal(jax.random.key(4), (2, 4, 3)),)), {}),
    "nnx train": _nnx,
    "control flow": _plain,
}


class _Models(Mapping):
    """name -> (apply, variables, inputs, keywords), each made when it is first asked for."""

    def __init__(self):
        self._made = {}

    def __getitem__(self, name):
        if name not in self._made:
            self._made[name] = _MAKERS[name]()
        return self._made[name]

    def __iter__(self):
        return iter(_MAKERS)

    def __len__(self):
        return len(_MAKERS)


MODELS = _Models()
