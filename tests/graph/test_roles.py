"""What each leaf is taken for: Linen, NNX, Haiku-like and plain models; unrolled, scanned, vmapped, in both layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from lepton_jax.core import paths
from lepton_jax.core.weight_axes import StackedShape, WeightAxes, axes_of
from lepton_jax.graph.roles import roles, weights
from lepton_jax.graph.strided import Strided, by_kind, kinds_of_axes


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    scanned: bool = True
    depth: int = 3

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(11, 8, name="table")
        x = table(tokens) + nn.Embed(6, 8, name="places")(jnp.arange(tokens.shape[1]))[None]
        x = x + self.param("pos", nn.initializers.normal(), (1, 6, 8))
        start = self.param("start", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(start, (x.shape[0], 1, 8)), x], axis=1)
        if self.scanned:
            layers = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            x, _ = layers(name="layers")(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Block()(x)
        return table.attend(nn.LayerNorm()(x))


class Convs(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        x = nn.Conv(4, (3, 3), feature_group_count=4)(x)
        x = nn.Conv(8, (1, 1), feature_group_count=2)(x)
        x = nn.RNN(nn.LSTMCell(5))(x.reshape(x.shape[0], -1, 8))
        return nn.Dense(3)(x[:, -1])


def found(apply, variables, *inputs):
    return {path: (role.kind, role.axes) for path, role in roles(apply, variables, *inputs).items()}


def axes(**kinds):
    return WeightAxes(**{kind: value if isinstance(value, tuple) else (value,) for kind, value in kinds.items()})


@pytest.mark.parametrize("depth", [3, 1])
def test_a_scanned_transformer(depth):
    model, tokens = Transformer(depth=depth), jnp.zeros((2, 6), int)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    got = found(model.apply, variables, tokens)
    attention = "params/layers/MultiHeadDotProductAttention_0"
    want = {
        "params/table/embedding": ("weight", axes(inputs=1, outputs=0)),
        "params/layers/Dense_0/kernel": ("weight", axes(stacked=0, inputs=1, outputs=2)),
        f"{attention}/query/kernel": ("weight", axes(stacked=0, inputs=1, outputs=(2, 3))),
        f"{attention}/out/kernel": ("weight", axes(stacked=0, inputs=(1, 2), outputs=3)),
    }
    assert {path: got[path] for path in want} == want
    for path, (kind, _) in got.items():  # all else is no weight: norms, biases of heads, places, the first token
        assert (kind in ("weight", "look-up")) == path.endswith(("kernel", "table/embedding")), path
        if path.endswith(("bias", "pos", "places/embedding")):
            assert kind == "bias", path
    assert got["params/layers/LayerNorm_0/scale"][0] == "scale"
    assert got["params/start"][0] == "other"
    chosen = weights(model.apply, variables, tokens)
    inside = paths.select(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), variables["params"]), chosen)
    assert {f"params/{path}" for path in inside} == {path for path, (kind, _) in got.items() if kind == "weight"}
    assert chosen.axes("table/embedding") == axes(inputs=1, outputs=0)  # of the parameters alone
    assert "params/start" in chosen.left
    assert "unclear" not in str(chosen.roles)


def test_an_unrolled_one_and_convolutions():
    model, tokens = Transformer(scanned=False), jnp.zeros((2, 6), int)
    got = found(model.apply, jax.eval_shape(model.init, jax.random.key(0), tokens), tokens)
    assert got["params/Block_1/Dense_0/kernel"] == ("weight", axes(inputs=0, outputs=1))
    assert got["params/Block_1/MultiHeadDotProductAttention_0/key/bias"] == ("bias", None)
    model, x = Convs(), jnp.zeros((2, 4, 4, 3))
    got = found(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)
    assert got["params/Conv_0/kernel"] == ("weight", axes(spatial=(0, 1), inputs=2, outputs=3))
    assert got["params/Conv_1/kernel"] == ("weight", axes(spatial=(0, 1), inputs=2, groups=3))
    grouped = got["params/Conv_2/kernel"][1]
    assert (grouped.spatial, grouped.inputs, grouped.outputs, grouped.grouped) == ((0, 1), (2,), (3,), True)
    assert got["batch_stats/BatchNorm_0/var"] == ("statistic", None)
    cell = {path: one for path, one in got.items() if "LSTMCell" in path and path.endswith("kernel")}
    assert len(cell) == 8
    assert set(cell.values()) == {("weight", axes(inputs=0, outputs=1))}


def test_an_nnx_module():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.two = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.two(nnx.relu(self.norm(self.one(x))).mean((1, 2)))

    module = Net(nnx.Rngs(0))
    module.eval()
    graph, params, state = nnx.split(module, nnx.Param, ...)

    def apply(v, x):
        return nnx.merge(graph, v["params"], v["state"])(x)

    got = found(apply, {"params": params, "state": state}, jnp.zeros((2, 5, 5, 3)))
    assert got["params/one/kernel"] == ("weight", axes(spatial=(0, 1), inputs=2, outputs=3))
    assert got["params/two/kernel"] == ("weight", axes(inputs=0, outputs=1))
    assert got["state/norm/mean"] == ("statistic", None)


def pytorch_like(v, x):
    w = v["conv"]["weight"]
    w = (w - w.mean((1, 2, 3), keepdims=True)) / jnp.sqrt(w.var((1, 2, 3), keepdims=True) + 1e-5)  # standardised
    x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    x = (x - v["mean"][None]) * jax.lax.rsqrt(v["var"] + 1e-5)[None] * v["gain"][None] + v["shift"][None]
    x = jax.nn.relu(x).mean((2, 3)).astype(jnp.bfloat16)
    qkv = x @ v["qkv"].astype(jnp.bfloat16).T
    q, k, value = jnp.moveaxis(qkv.reshape(-1, 3, 2, 2), 1, 0)
    x = (q * k + value).reshape(-1, 4).astype(jnp.float32)
    low = v["w[0]"] + v["low"]["a"] @ v["low"]["b"]
    experts = jnp.einsum("bi,eio->beo", x @ low, v["experts"])
    routed = jnp.einsum("ebi,eio->ebo", jnp.stack([x, x]), v["routed"])
    return experts.sum(1) + routed.sum(0) + jax.vmap(lambda w: x @ w)(v["members"]).sum(0)


def pytorch_variables():
    key = jax.random.key(0)
    shapes = {"mean": (6, 1, 1), "var": (6, 1, 1), "gain": (6, 1, 1), "shift": (6, 1, 1), "qkv": (12, 6), "w[0]": (4, 5)}
    shapes |= {"experts": (3, 5, 7), "routed": (2, 4, 7), "members": (3, 4, 7), "aux": (3, 3)}
    made = {name: jax.random.uniform(jax.random.fold_in(key, i), shape) for i, (name, shape) in enumerate(shapes.items())}
    low = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 5))}
    return {**made, "conv": {"weight": jax.random.normal(key, (6, 3, 3, 3))}, "low": low}


def test_a_plain_function_in_pytorchs_layout():
    got = found(jax.jit(pytorch_like), pytorch_variables(), jnp.ones((2, 3, 4, 4)))
    assert got["conv/weight"] == ("weight", axes(outputs=0, inputs=1, spatial=(2, 3)))
    assert got["qkv"] == ("weight", axes(outputs=0, inputs=1))
    assert got["w[0]"] == ("weight", axes(inputs=0, outputs=1))
    assert got["low/a"][0] == got["low/b"][0] == "weight"  # factors of a weight
    assert got["experts"] == ("weight", axes(outputs=(0, 2), inputs=1))  # they share their input: one wide layer
    assert got["routed"] == ("weight", axes(stacked=0, inputs=1, outputs=2))  # each has its own
    assert got["members"][1].inputs == (1,)
    assert got["aux"] == ("unread", None)
    assert (got["mean"][0], got["var"][0], got["gain"][0], got["shift"][0]) == ("bias", "statistic", "scale", "bias")


def test_what_is_not_clear_is_left_alone():
    def both_ways(v, x):
        return (x @ v["w"]) @ v["w"]

    chosen = weights(both_ways, {"w": jnp.ones((4, 4))}, jnp.ones((2, 4)))
    assert chosen.roles["w"].kind == "weight"
    assert chosen.axes("w") == axes(inputs=0, outputs=1)  # twice the same way
    chosen = weights(lambda v, x: (x @ v["w"]) @ v["w"].T, {"w": jnp.ones((4, 3))}, jnp.ones((2, 4)))
    assert chosen.roles["w"].unclear
    assert not chosen("w", jnp.ones((4, 3)))
    assert "unclear" in str(chosen.roles)
    vector = weights(lambda v, x: x @ v["w"], {"w": jnp.ones(4)}, jnp.ones((2, 4)))
    assert not vector("w", jnp.ones(4))  # no matrix


def test_loops_branches_and_devices():
    def apply(v, x):
        x = jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ v["looped"]), x)
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ v["left"], lambda x: x @ v["right"].T, x)
        x = jax.lax.while_loop(lambda x: x.sum() > 9, lambda x: x @ v["while"], x)
        x = jax.nn.relu(x @ jax.lax.with_sharding_constraint(v["spread"], jax.sharding.SingleDeviceSharding(jax.devices()[0])))
        _, ys = jax.lax.scan(lambda c, x: (c + v["start"], x * c), v["first"], x)
        return ys

    names = ("looped", "left", "right", "while", "spread")
    variables = {name: jnp.ones((4, 4)) for name in names} | {"start": jnp.ones(4), "first": jnp.ones(4)}
    got = found(apply, variables, jnp.ones((2, 4)))
    assert {name: got[name][0] for name in names} == dict.fromkeys(names, "weight")
    assert got["right"][1] == axes(inputs=1, outputs=0)
    assert got["first"][0] == "other"


def test_a_saved_program_cannot_be_looked_into(tmp_path):
    import lepton_jax

    variables = {"kernel": jnp.ones((4, 3)), "norm": {"scale": jnp.ones((4, 3))}}
    lepton_jax.save(tmp_path / "m.lepton", lambda v, x: x @ (v["kernel"] * v["norm"]["scale"]), variables, jnp.ones((2, 4)))
    loaded = lepton_jax.load(tmp_path / "m.lepton")
    chosen = weights(loaded.apply, loaded.packed, jnp.ones((2, 4)))
    assert {role.kind for role in chosen.roles.values()} == {"unseen"}
    assert [path for path, leaf in paths.flatten(variables).items() if chosen(path, leaf)] == ["kernel"]  # by its name


def test_strides_follow_numpy():
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape = tuple(rng.integers(1, 4, rng.integers(1, 5)))
        order = tuple(rng.permutation(len(shape)))
        leaf = np.arange(np.prod(shape)).reshape(shape)
        value = Strided.of(shape)._along(order)
        moved = leaf.transpose(order)
        for axis, size in enumerate(moved.shape):
            if size > 1:
                assert np.unique(np.diff(moved, axis=axis)).tolist() == [value.strides[axis]]
        kinds = [("inputs", "outputs", "spatial", "stacked")[axis % 4] for axis in range(len(shape))]
        seen = kinds_of_axes(shape, value, kinds)
        for place, axis in enumerate(order):
            assert seen[axis] == ({kinds[place]} if shape[axis] > 1 else set())


def test_axes_say_what_they_are():
    one = axes(stacked=(0, 1), inputs=3, outputs=2)
    assert (one.leading, one.summed, one.channels, one.ndim) == (2, (3,), (0, 1, 2), 4)
    assert one.of_one == axes(inputs=1, outputs=0)
    assert (one.shape_of_one((2, 3, 4, 5)), one.shape_of_one((2, 3, 4, 5)).times) == ((4, 5), 6)
    assert axes(stacked=1, inputs=0, outputs=2).leading is None
    assert StackedShape((1, 2)).times == 1
    assert by_kind([{"inputs", "outputs"}]) is None
    assert axes_of(lambda path, leaf: True, "w", (2, 3)) is None
