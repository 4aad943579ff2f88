"""The whole way, for models of every make: train under a chain of views, pack, save, load, and the same answers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import lepton_jax
from lepton_jax import cast, chain, fake_quant, freeze, low_rank, pack, prune, unpack
from lepton_jax.models import CNN
from lepton_jax.quantization import Codebook, QArray
from lepton_jax.training import create, make_train_step


class NnxNet(nnx.Module):
    """Two layers and a batch norm."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
        self.second = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


def nnx_model():
    graph, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)
    return params, rest, lambda params, rest, x: nnx.merge(graph, params, rest)(x), (6,)


def linen_model():
    model = CNN(classes=3, features=(4, 4, 8))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    stats = {"batch_stats": variables["batch_stats"]}
    return variables["params"], stats, lambda p, stats, x: model.apply({"params": p, **stats}, x), (8, 8, 1)


def plain_model():
    keys = jax.random.split(jax.random.key(0))
    params = [jax.random.normal(key, shape) / 3 for key, shape in zip(keys, [(6, 16), (16, 3)])]
    return params, {}, lambda p, rest, x: jnp.tanh(x @ p[0]) @ p[1], (6,)


CHAINS = {
    "prune, codebook": lambda: chain(prune(0.75), fake_quant(Codebook(bits=2))),
    "low rank, prune, 4 bits": lambda: chain(low_rank(2), prune(0.5), fake_quant(bits=4, channel_axis=-1)),
    "affine 8 bits, bf16": lambda: chain(fake_quant(bits=8, symmetric=False), cast("bfloat16")),
}


@pytest.mark.parametrize("chain_name", CHAINS)
@pytest.mark.parametrize("model", [nnx_model, linen_model, plain_model])
def test_the_whole_way(model, chain_name, tmp_path):
    params, rest, apply, shape = model()
    x = jax.random.normal(jax.random.key(1), (32, *shape))
    labels = jax.random.randint(jax.random.key(2), (32,), 0, 3)
    transform, tx = CHAINS[chain_name](), optax.adam(1e-2)

    def loss_fn(params, model_state, batch, key):
        logits = apply(params, model_state, batch).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (model_state, {})

    step = make_train_step(loss_fn, tx, transform)
    state = create(params, rest, tx, transform, jax.random.key(3))
    losses = []
    for _ in range(8):
        state, metrics = step(state, x)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))

    seen = jax.jit(transform.view)(state.params, state.tstate)
    assert jax.tree.structure(seen) == jax.tree.structure(params)
    packed = jax.jit(lambda p, s: pack(transform, p, s))(state.params, state.tstate)
    for view, unpacked in zip(jax.tree.leaves(seen), jax.tree.leaves(unpack(packed)), strict=True):
        assert view.dtype == unpacked.dtype
        assert np.asarray(view).tobytes() == np.asarray(unpacked).tobytes()

    path = tmp_path / "model.lepton"
    lepton_jax.save(path, lambda v, x: apply(*v, x), (packed, state.model_state), x[:1])
    wanted = jax.jit(apply)(seen, state.model_state, x)
    given = lepton_jax.load(path)(x)
    assert given.dtype == wanted.dtype
    assert np.asarray(given).tobytes() == np.asarray(wanted).tobytes()
    assert lepton_jax.account(path).total == path.stat().st_size


def test_a_phase_hands_its_masks_on():
    params, _, _, _ = plain_model()
    pruned = prune(0.75)
    params, tstate = pruned.init(params)
    both = chain(freeze(pruned, tstate), fake_quant(Codebook(bits=3)))
    params, states = both.init(params)
    packed = pack(both, params, states)
    for before, after in zip(jax.tree.leaves(tstate.masks), jax.tree.leaves(unpack(packed)), strict=True):
        np.testing.assert_array_equal(after != 0, before)


def test_factors_are_packed_one_by_one():
    params, _, _, _ = plain_model()
    transform = chain(low_rank(2), fake_quant(bits=4))
    packed = pack(transform, *transform.init(params))
    assert [type(leaf).__name__ for leaf in jax.tree.leaves(packed, is_leaf=lambda x: isinstance(x, QArray))] == ["QArray"] * 4
    assert packed[0].u.words.size == 6 * 2 // 2  # half a byte a weight


def test_linen_scopes_accept_the_view():
    """Flax checks the shapes of what it is given."""
    model = nn.Dense(4)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8)))
    transform = chain(prune(0.5), fake_quant(bits=3), cast(jnp.float16))
    params, state = transform.init(variables["params"])
    assert model.apply({"params": transform.view(params, state)}, jnp.ones((2, 8), jnp.float16)).dtype == jnp.float16
