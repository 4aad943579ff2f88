"""Weights with corrections: run as they are, saved, loaded, counted; damaged ones refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import ArtifactError, load, pack, save
from lepton_jax.artifact import structure
from lepton_jax.core.packed import unpack
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank import loftq, lora, qlora
from lepton_jax.native.interpreter import packed, unpacked
from lepton_jax.quantization import Uniform

INT4 = Uniform(bits=4, channel_axis=-1)


def draw(*shape):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def apply(v, x):
    x = jax.lax.conv_general_dilated(x, v["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(x.mean((1, 2))) @ v["dense"] @ v["turned"].T


X = draw(2, 5, 5, 2)
SHAPES = {"conv": (3, 3, 2, 4), "dense": (4, 6), "turned": (7, 6)}


def tree(seed=0):
    keys = zip(jax.random.split(jax.random.key(seed), len(SHAPES)), SHAPES.items())
    return {name: loftq(jax.random.normal(key, shape), 2, INT4) for key, (name, shape) in keys}


def test_it_is_the_sum_in_float64_and_keeps_the_dtype():
    leaf = tree()["conv"]
    exact = np.asarray(leaf.base.unpack(), np.float64) + np.asarray(
        np.asarray(leaf.correction.u, np.float64) @ np.asarray(leaf.correction.v, np.float64)
    ).reshape(leaf.shape)
    np.testing.assert_allclose(leaf.unpack(), exact, rtol=1e-5, atol=1e-6)
    half = Adapted(jnp.ones((2, 2), jnp.bfloat16), LowRank(jnp.full((2, 1), 1 / 256), jnp.full((1, 2), 1.5), (2, 2)))
    assert (half.unpack().dtype, half.dtype) == (jnp.bfloat16, jnp.bfloat16)
    # 1 + 1.5 / 256 is nearer to 1 + 1 / 128, the next number of bfloat16, than to 1.
    np.testing.assert_array_equal(np.asarray(half.unpack(), np.float32), 1 + 1 / 128)


def test_each_part_runs_as_it_is():
    variables = tree()
    assert unpacked(apply, variables, X) == ()
    np.testing.assert_allclose(jax.jit(packed(apply))(variables, X), apply(unpack(variables), X), rtol=2e-5, atol=1e-5)
    text = str(jax.make_jaxpr(packed(lambda v, x: x @ v["dense"]))({"dense": variables["dense"]}, draw(3, 4)))
    assert text.count("dot_general") == 3  # the codes, and two thin factors
    assert "f32[3,2]" in text
    assert "f32[4,6]" in text  # the codes are cast where they meet a floating input


def test_layers_of_a_scan_and_an_embedding():
    stack = {"w": Adapted(draw(3, 4, 4), LowRank(draw(3, 4, 1), draw(3, 1, 4), (3, 4, 4)))}
    table = {"rows": loftq(draw(9, 4), 1, INT4)}

    def through(v, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["w"])[0]

    assert unpacked(through, stack, draw(2, 4)) == ()
    np.testing.assert_allclose(packed(through)(stack, draw(2, 4)), through(unpack(stack), draw(2, 4)), rtol=1e-5, atol=1e-6)
    places = jnp.array([3, 0, 8])
    look = lambda v, i: v["rows"][i]  # noqa: E731
    np.testing.assert_allclose(packed(look)(table, places), look(unpack(table), places), rtol=1e-5, atol=1e-6)


def test_what_is_not_linear_gets_the_dense_weight():
    found = unpacked(lambda v, x: jnp.sin(v["dense"]) * x, {"dense": tree()["dense"]}, 1.0)
    assert [str(one) for one in found] == ["dense (Adapted) at sin"]


@pytest.mark.parametrize(
    "transform", [lora(2, jax.random.key(0)), qlora(2, jax.random.key(0), format=INT4)], ids=["lora", "qlora"]
)
def test_files_bring_adapters_back(transform, tmp_path):
    params, state = transform.init({name: draw(*shape) for name, shape in SHAPES.items()})
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    variables, path = pack(transform, params, state), tmp_path / "m.lepton"
    save(path, apply, variables, X, native=True)
    artifact = load(path)
    assert jax.tree.structure(artifact.packed) == jax.tree.structure(variables)
    for one, other in zip(jax.tree.leaves(artifact.packed), jax.tree.leaves(variables)):
        np.testing.assert_array_equal(one, other)
    seen = transform.view(params, state)
    for name in SHAPES:
        np.testing.assert_array_equal(artifact.variables[name], seen[name])
    np.testing.assert_array_equal(artifact(X), jax.jit(apply)(seen, X))
    np.testing.assert_allclose(artifact.native()(X), artifact(X), rtol=2e-5, atol=1e-5)
    account = artifact.account()
    assert account.total == path.stat().st_size
    assert account.parameters == 72 + 24 + 42
    assert [tensor.path for tensor in account.tensors][:3] == ["conv/base", "conv/correction/u", "conv/correction/v"]
    assert type(artifact.packed["conv"].base) is type(variables["conv"].base)


def test_damaged_trees_are_refused():
    good = structure.describe({"w": tree()["dense"]}, lambda path, leaf: path)
    assert good == {"w": [10, [4, 6], "w/base", [3, [4, 6], "w/correction/u", "w/correction/v"]]}
    leaf = tree()["dense"]
    parts = {"w/base": leaf.base, "w/correction/u": leaf.correction.u, "w/correction/v": leaf.correction.v}

    def rebuilt(node):
        return structure.rebuild(node, iter([parts[text] for _, text in structure.leaf_texts(node)]))

    np.testing.assert_array_equal(rebuilt(good)["w"].unpack(), leaf.unpack())
    inner = good["w"][3]
    for bad in ([10, [6, 4], "w/base", inner], [10, [4, 6], inner, "w/base"], [10, [4, 6], "w/base", "w/correction/u"]):
        with pytest.raises(ArtifactError, match="make no tensor of shape"):
            rebuilt({"w": bad})
    with pytest.raises(ArtifactError, match="the tree is damaged at w"):
        list(structure.leaf_texts({"w": [10, [4, 6], "w/base"]}))
