"""The loaded file gives the outputs of the live view, bit for bit, on the same backend."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import cast, chain, fake_quant, load, low_rank, pack, prune, save
from lepton_jax.formats.codebook import Codebook
from lepton_jax.leaves.block_sparse import BlockSparse


class Net(nn.Module):
    """Convolution, batch statistics, two dots."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        x = nn.relu(nn.Dense(6)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


TRANSFORMS = {
    "pruned": prune(0.8),
    "quantized": fake_quant(bits=4),
    "quantized_by_channel": fake_quant(bits=8, channel_axis=-1, symmetric=False),
    "codebook": fake_quant(Codebook(bits=2)),
    "low_rank": low_rank(2, select="Dense_0/kernel"),
    "cast": cast(jnp.bfloat16),
    "pruned_codebook_cast": chain(prune(0.7), fake_quant(Codebook(bits=3)), cast(jnp.bfloat16)),
    "factored_pruned_quantized": chain(low_rank(2, select="Dense_0/kernel"), prune(0.5), fake_quant(bits=5, channel_axis=-1)),
}


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    variables = Net().init(jax.random.key(0), jnp.ones((1, 5, 5, 2)))
    # Statistics that do something.
    stats = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype), variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_file_answers_as_the_live_view(name, variables, tmp_path):
    transform = TRANSFORMS[name]
    params, state = transform.init(variables["params"])
    zero = jax.tree.map(jnp.zeros_like, params)
    params, state = transform.update(params, state, zero, jnp.int32(0))
    live = {**variables, "params": jax.jit(transform.view)(params, state)}
    save(tmp_path / "m.lepton", Net().apply, {**variables, "params": pack(transform, params, state)}, jnp.ones((1, 5, 5, 2)))
    artifact, apply = load(tmp_path / "m.lepton"), jax.jit(Net().apply)
    for batch in (1, 3):
        x = jnp.asarray(np.random.default_rng(batch).normal(size=(batch, 5, 5, 2)), jnp.float32)
        expected, found = apply(live, x), artifact(x)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(found).view(np.uint8), np.asarray(expected).view(np.uint8))


def test_block_sparse_leaves_come_back_and_answer(tmp_path):
    rng = np.random.default_rng(0)
    dense = jnp.asarray(np.kron(np.eye(3), np.ones((2, 4))) * rng.normal(size=(6, 12)), jnp.float32)
    leaf = BlockSparse.from_dense(dense, (2, 4))
    save(tmp_path / "m.lepton", lambda v, x: x @ v["w"], {"w": leaf}, jnp.ones((1, 6)), native=True)
    artifact, x = load(tmp_path / "m.lepton"), jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
    assert isinstance(artifact.packed["w"], BlockSparse)
    np.testing.assert_array_equal(artifact.variables["w"], dense)
    np.testing.assert_array_equal(artifact(x), jax.jit(lambda w, x: x @ w)(dense, x))
    np.testing.assert_allclose(artifact.native()(x), x @ dense, rtol=1e-5)
    account = artifact.account()
    assert account.total == (tmp_path / "m.lepton").stat().st_size
    assert account.parameters == dense.size
