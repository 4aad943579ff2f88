"""Packed execution of a loaded file, with a native program and without; other weights through a file's program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lepton_jax import ArtifactError, account, chain, fake_quant, load, low_rank, pack, prune, save, unpack
from lepton_jax.artifact import container
from lepton_jax.native import UnpackedWarning, packed


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


NET, X = Net(), jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 1)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    params = jax.jit(NET.init)(jax.random.key(0), X)["params"]
    transform = chain(low_rank(2, select="Dense_0/kernel"), prune(0.5), fake_quant(bits=5, channel_axis=-1))
    return {"params": jax.jit(lambda params: pack(transform, *transform.init(params)))(params)}


@pytest.fixture(scope="module", params=[True, False], ids=["native", "plain"])
def saved(variables, request, tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "m.lepton"
    save(path, NET.apply, variables, X, native=request.param)
    return path, request.param


def test_a_file_runs_on_its_packed_leaves(saved, variables):
    path, is_native = saved
    artifact = load(path)
    assert ("native" in artifact.manifest) == is_native
    assert artifact.manifest["platforms"] == ["cpu", "cuda", "tpu"]
    if is_native:
        run = artifact.native()
    else:
        with pytest.warns(UnpackedWarning, match="has no native program, so its 3 packed leaves are decoded"):
            run = artifact.native()
    for size in (1, 5):
        x = jnp.asarray(np.random.default_rng(size).normal(size=(size, 6, 6, 1)), jnp.float32)
        expected = jax.jit(packed(NET.apply))(variables, x) if is_native else jax.jit(NET.apply)(unpack(variables), x)
        np.testing.assert_allclose(run(x), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run(x), artifact(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"0: needs float32\[b,6,6,1\]; got float32\[2, 6\]"):
        run(jnp.ones((2, 6)))
    assert account(path).total == path.stat().st_size


def test_the_native_program_multiplies_thin_factors(variables, tmp_path):
    """Its text holds the dots with the factors and no dot with the dense kernel."""
    save(tmp_path / "m.lepton", NET.apply, variables, X, native=True)
    artifact = load(tmp_path / "m.lepton")
    plain, native = (jax.export.deserialize(bytearray(code)).mlir_module() for code in (artifact._code, artifact._native_code))
    dots = {
        name: [line for line in text.splitlines() if "dot_general" in line]
        for name, text in (("plain", plain), ("native", native))
    }
    assert any("tensor<144x12xf32>" in line for line in dots["plain"])
    assert not any("tensor<144x12xf32>" in line for line in dots["native"])
    assert any("tensor<144x2xf32>" in line for line in dots["native"])


def test_a_damaged_place_of_the_native_program_is_refused(variables, tmp_path):
    path = tmp_path / "m.lepton"
    save(path, NET.apply, variables, X, native=True)
    parsed = container.parse(path.read_bytes(), "m")
    manifest = parsed.sections["manifest"].data
    code = parsed.sections["program"].data
    place = manifest[manifest.index(b'"native":') + 9 :].split(b",")[0]
    for wrong in (b"0", b"-1", b'"x"', str(len(code)).encode()):
        changed = manifest.replace(b'"native":' + place, b'"native":' + wrong)
        container.write_atomic(path, container.build(changed, code, parsed.sections["tensors"].data))
        with pytest.raises(ArtifactError, match="a native program at"):
            load(path)


def test_the_program_takes_other_weights_and_can_be_saved_anew(saved, tmp_path):
    artifact = load(saved[0])
    doubled = jax.tree.map(lambda w: 2 * w, artifact.variables)
    np.testing.assert_array_equal(jax.jit(artifact.apply)(doubled, X), jax.jit(NET.apply)(doubled, X))
    np.testing.assert_array_equal(artifact.apply(artifact.packed, X), artifact(X))
    assert [(one.shape[1:], one.dtype) for one in artifact.example_inputs] == [((6, 6, 1), jnp.float32)]
    save(tmp_path / "again.lepton", artifact.apply, doubled, *artifact.example_inputs)
    again = load(tmp_path / "again.lepton")
    assert again.manifest["batch"] == "symbolic"
    assert again.manifest["platforms"] == ["cpu", "cuda", "tpu"]
    np.testing.assert_array_equal(again(X), artifact.apply(doubled, X))
    with pytest.raises(ValueError, match=r"apply: needs variables of the file's structure.*Dense_1"):
        artifact.apply({"params": {"Conv_0": doubled["params"]["Conv_0"], "Dense_0": doubled["params"]["Dense_0"]}}, X)


def test_order_of_a_foreign_node_and_keys(tmp_path):
    """An nnx.State keeps its own order, and a random key is a leaf of two words."""
    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(linear)
    variables = {"z": state, "a": {"key": jax.random.key(3)}}

    def apply(variables, x):
        noise = jax.random.normal(variables["a"]["key"], (x.shape[0], 2))
        return nnx.merge(graph, variables["z"])(x) + noise

    x = jnp.ones((2, 3))
    save(tmp_path / "m.lepton", apply, variables, x, native=True)
    artifact = load(tmp_path / "m.lepton")
    expected = jax.jit(apply)(variables, x)
    np.testing.assert_array_equal(artifact(x), expected)
    np.testing.assert_array_equal(artifact.apply(artifact.variables, x), expected)
    np.testing.assert_allclose(artifact.native()(x), expected, rtol=1e-6)
