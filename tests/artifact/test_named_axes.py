"""Programs whose axes have names: any length of them; inputs of any type of node; mapping; and when the bits are the same."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax import ArtifactError, load, save
from lepton_jax.artifact.program import export_program
from lepton_jax.command_line.main import main
from lepton_jax.simple import Model, load_model

RNG = np.random.default_rng(12)


class Decoder(nn.Module):
    """A causal layer over tokens, with learned positions."""

    @nn.compact
    def __call__(self, ids, lengths):
        x = nn.Embed(11, 8)(ids) + self.param("positions", nn.initializers.normal(), (16, 8))[None, : ids.shape[1]]
        seen = nn.make_causal_mask(ids) * (jnp.arange(ids.shape[1])[None, None, None] < lengths[:, None, None, None])
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=seen)
        return nn.Dense(11)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


def tokens(batch, time):
    return jnp.asarray(RNG.integers(0, 11, (batch, time)), jnp.int32), jnp.asarray(RNG.integers(1, time + 1, batch), jnp.int32)


@pytest.fixture(scope="module")
def decoder():
    return jax.jit(Decoder().init)(jax.random.key(0), *tokens(2, 5))


NAMES = {0: "batch", 1: "time"}


@pytest.mark.parametrize("axes", [NAMES, [NAMES, {0: "batch"}]])
def test_a_token_model_runs_at_any_length(axes, decoder, tmp_path):
    model = Model(Decoder().apply, decoder, tokens(3, 6))
    model.save(tmp_path / "m.lepton", axes=axes, constraints=("time <= 16",))
    loaded = load(tmp_path / "m.lepton")
    assert loaded.axes == (NAMES, {0: "batch"})
    assert loaded.constraints == ("time <= 16",)
    assert [leaf.shape for leaf in loaded.example_inputs] == [(3, 6), (3,)]
    assert loaded.manifest["batch"] == "symbolic"
    for batch, time in ((1, 1), (2, 16), (5, 3)):
        inputs = tokens(batch, time)
        out, expected = loaded(*inputs), jax.jit(Decoder().apply)(decoder, *inputs)
        assert out.dtype == expected.dtype
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"lengths must keep to time <= 16"):
        loaded(*tokens(2, 17))
    with pytest.raises(
        ValueError, match=r"\(batch, time: any length from 1, time <= 16\):\n  1: needs int32\[batch\]; got int32\[3\]"
    ):
        loaded(tokens(2, 4)[0], tokens(3, 4)[1])


def test_a_loaded_program_is_saved_anew_with_its_axes(decoder, tmp_path):
    first, second, third = (tmp_path / f"{name}.lepton" for name in "abc")
    save(first, Decoder().apply, decoder, *tokens(2, 5), axes=NAMES, constraints=("time <= 16",))
    load_model(first).save(second)
    assert main(["convert", str(first), str(third), "--program", str(first)]) == 0
    inputs = tokens(4, 9)
    for path in (second, third):
        again = load(path)
        assert (again.axes, again.constraints) == ((NAMES, {0: "batch"}), ("time <= 16",))
        np.testing.assert_array_equal(again(*inputs), load(first)(*inputs))


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({2: "depth"}, "axis 2 ('depth'): no input has it"),
        ({-1: "last"}, "axis -1 ('last'): no input has it"),
        ({0: "a b"}, "array 0: axis 0 must have a name like 'time'; got 'a b'"),
        ([{0: "batch"}], "1 mappings for 2 arrays"),
        ([{0: "batch"}, {1: "time"}], "array 1: axis 1 ('time') must be from 0 to 0"),
        ({0: "one", 1: "one"}, "array 0: axis 1 ('one') is 5 long, and another of that name 2"),
    ],
)
def test_wrong_axes_are_named(axes, says, tmp_path):
    with pytest.raises(ValueError, match="save: axes must name axes of the inputs") as caught:
        save(tmp_path / "m.lepton", lambda v, x, y: x * v, jnp.ones(()), jnp.ones((2, 5)), jnp.ones(2), axes=axes)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_cannot_vary_and_a_constraint_that_is_none_are_refused(tmp_path):
    apply, x = lambda v, x: x.reshape(2, -1) * v, jnp.ones((4, 3))
    with pytest.raises(ArtifactError, match=r"with batch of any length: .*mod\(3\*batch.*Name fewer axes"):
        save(tmp_path / "m.lepton", apply, jnp.ones(()), x, axes={0: "batch"})
    with pytest.raises(ValueError, match=r"save: constraints must be like 'time <= 512'"):
        save(tmp_path / "m.lepton", apply, jnp.ones(()), x, axes={0: "batch"}, constraints=("batch is even",))
    padded = {"axes": {0: "batch", 1: "time"}, "constraints": ("time >= 2", "time <= 4")}
    save(tmp_path / "m.lepton", lambda v, x: jnp.pad(x, ((0, 0), (0, 4 - x.shape[1]))) * v, jnp.ones(()), x, **padded)
    assert load(tmp_path / "m.lepton")(jnp.ones((6, 2))).tolist() == [[1, 1, 0, 0]] * 6


class Pair(NamedTuple):
    right: jax.Array
    left: jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "batch"], meta_fields=["kind"])
@dataclasses.dataclass
class Item:
    weight: jax.Array
    batch: Pair
    kind: str = "plain"


def test_named_tuples_and_dataclasses_go_in_and_come_out(tmp_path):
    def apply(v, item, more):
        assert isinstance(item, Item)
        assert isinstance(item.batch, Pair)
        assert item.kind == "special"
        scale = item.weight * more["b"] - more["a"]
        return Pair(right=item.batch.right @ v * scale, left=item.batch.left)

    w = jnp.asarray(RNG.standard_normal((3, 2)), jnp.float32)
    item = Item(jnp.float32(2), Pair(jnp.ones((4, 3)), jnp.zeros((4, 1))), "special")
    more = {"b": jnp.float32(3), "a": jnp.float32(0.5)}
    save(tmp_path / "m.lepton", apply, w, item, more)
    loaded = load(tmp_path / "m.lepton")
    assert loaded.manifest["batch"] == "symbolic"
    expected = jax.jit(apply)(w, item, more)
    plain = {"weight": jnp.float32(2), "batch": (jnp.ones((4, 3)), jnp.zeros((4, 1)))}
    for given in (item, plain):
        right, left = loaded(given, more)
        np.testing.assert_array_equal(right, expected.right)
        np.testing.assert_array_equal(left, expected.left)
    with pytest.raises(ValueError, match="0/batch/0: needs float32"):
        loaded(Item(jnp.float32(2), Pair(jnp.ones((4, 2)), jnp.zeros((4, 1)))), more)


def test_a_loaded_model_is_mapped_and_says_that_it_has_no_derivative(tmp_path):
    def apply(v, x, scale):
        h = x @ v
        return (h - h.mean(0, keepdims=True)) * scale  # the batch plays a part: mapped examples must stay apart

    w = jnp.asarray(RNG.standard_normal((3, 2)), jnp.float32)
    save(tmp_path / "m.lepton", apply, w, jnp.ones((2, 3)), jnp.float32(1), native=True)
    loaded, xs = load(tmp_path / "m.lepton"), jnp.asarray(RNG.standard_normal((5, 4, 3)), jnp.float32)
    expected = jnp.stack([loaded(x, jnp.float32(2)) for x in xs])
    for run in (loaded, loaded.native(), partial(loaded.apply, loaded.variables), load_model(tmp_path / "m.lepton")):
        got = jax.vmap(run, in_axes=(0, None))(xs, jnp.float32(2))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    twice = jax.jit(jax.vmap(jax.vmap(loaded, (0, None)), (None, 0)))(xs, jnp.arange(3.0))
    np.testing.assert_allclose(twice[2], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="has no derivative: differentiate the original function"):
        jax.grad(lambda x: loaded(x, jnp.float32(1)).sum())(xs[0])


def test_the_manifest_says_whether_the_bits_are_the_same(decoder, tmp_path):
    """Positions up to a length that is not known are cut out by a dynamic slice, up to a known one by a slice."""
    save(tmp_path / "time.lepton", Decoder().apply, decoder, *tokens(2, 5), axes=NAMES, constraints=("time <= 16",))
    save(tmp_path / "batch.lepton", Decoder().apply, decoder, *tokens(2, 5))
    save(tmp_path / "one.lepton", Decoder().apply, decoder, *tokens(2, 5), axes={})
    found = {name: load(tmp_path / f"{name}.lepton") for name in ("time", "batch", "one")}
    facts = {name: (model.manifest["batch"], model.manifest["bits"]) for name, model in found.items()}
    assert facts == {"time": ("symbolic", "rounding"), "batch": ("symbolic", "exact"), "one": ("static", "exact")}
    inputs = tokens(2, 5)
    for name in ("batch", "one"):
        np.testing.assert_array_equal(found[name](*inputs), jax.jit(Decoder().apply)(decoder, *inputs))


def pooled(v, x):
    """What made a Swin differ by 1e-7: jax gathers every second pixel of a batch of any length."""
    return jnp.exp(jnp.tanh(x[:, ::2, ::2])).sum((1, 2)) @ v


def test_strided_slices_keep_the_bits_at_any_batch(tmp_path):
    w, x = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((12, 3), (6, 8, 8, 12)))
    save(tmp_path / "m.lepton", pooled, w, x)
    loaded = load(tmp_path / "m.lepton")
    assert (loaded.manifest["batch"], loaded.manifest["bits"]) == ("symbolic", "exact")
    for batch in (1, 2, 6):
        np.testing.assert_array_equal(loaded(x[:batch]), jax.jit(pooled)(w, x[:batch]))


CUTS = {
    "first": lambda x: x[:, 0],
    "last": lambda x: x[:, None, -1],
    "middle": lambda x: x[:, 1:4],
    "strided": lambda x: x[:, 1::2, ::3],
    "strided and one": lambda x: x[:, ::2, :, 3],
    "reversed": lambda x: x[:, ::-1],
    "leading": lambda x: x.transpose(1, 0, 2, 3)[2],
    "in a scan": lambda x: jax.lax.scan(lambda c, y: (c + y[:, 1], y[0, ::2]), x[:, 0, 0], x.transpose(1, 0, 2, 3))[0],
    "under a rule": lambda x: jax.nn.relu(jax.checkpoint(lambda y: jnp.sin(y[:, 2:]))(x)),
}


@pytest.mark.parametrize("name", CUTS)
def test_static_indices_are_slices_at_any_batch(name):
    x = jnp.asarray(RNG.standard_normal((3, 6, 7, 5)), jnp.float32)
    cut = CUTS[name]
    found = export_program(lambda v, x: cut(x) * v, jnp.float32(2), (x,), {0: "batch"})
    assert found.exact
    assert "gather" not in found.exported.mlir_module()
    for batch in (1, 3):
        np.testing.assert_array_equal(found.exported.call([jnp.float32(2)], x[:batch]), 2 * cut(x[:batch]))


@pytest.mark.parametrize("cut", [lambda x: x[:, jnp.array([2, 0, 1])], lambda x: x[:, jnp.array([1, 1])]])
def test_other_indices_stay_gathers(cut):
    x = jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32)
    found = export_program(lambda v, x: cut(x) * v, jnp.float32(1), (x,))
    assert "gather" in found.exported.mlir_module()
    np.testing.assert_array_equal(found.exported.call([jnp.float32(1)], x[:2]), cut(x[:2]))
