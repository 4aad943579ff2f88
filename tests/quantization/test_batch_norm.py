"""Statistics of batch norms under quantized weights, and training with batch norms folded into them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import fake_quant, identity, low_rank, unpack
from lepton_jax.data import Batch
from lepton_jax.graph import fold_batch_norm
from lepton_jax.graph.fold import folding
from lepton_jax.quantization import FoldedTraining, Uniform, calibrated, fake, re_estimate_batch_norm
from lepton_jax.training import classification_loss, create, linen_apply, make_train_step


class Net(nn.Module):
    """Two layers with batch norms."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train=False):
        for width in (4, 3):
            x = nn.Dense(width, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
            x = nn.relu(x)
        return x


X = jnp.asarray(np.random.default_rng(0).normal(size=(24, 5)), jnp.float32)


def variables(net):
    made = dict(jax.jit(net.init)(jax.random.key(0), X))
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda a: a + jnp.asarray(0.3 * draw.normal(size=a.shape), jnp.float32), made.pop("params"))
    stats = jax.tree.map(lambda a: a + jnp.asarray(draw.uniform(0, 0.5, size=a.shape), jnp.float32), made)
    return params, stats


@pytest.mark.parametrize("momentum", [0.9, 0.0, 0.999])
def test_statistics_are_those_of_all_examples(momentum):
    net = Net(momentum)
    params, stats = variables(net)
    seen = fake_quant(2).view(params, ())
    # Batches of different sizes; the first layer's statistics do not depend on how they are cut.
    batches = [X[:4], X[4:16], X[16:]]
    new = re_estimate_batch_norm(linen_apply(net), seen, stats, batches)["batch_stats"]
    hidden = np.asarray(X, np.float64) @ np.asarray(seen["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(new["BatchNorm_0"]["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["BatchNorm_0"]["var"], hidden.var(0), rtol=1e-4)
    # The second's are of activations normalised by each batch.
    parts = []
    for part in np.split(hidden, [4, 16]):
        own, norm = seen["Dense_1"]["kernel"], seen["BatchNorm_0"]
        normal = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
        parts.append(np.maximum(normal, 0) @ np.asarray(own, np.float64))
    whole = np.concatenate(parts)
    np.testing.assert_allclose(new["BatchNorm_1"]["mean"], whole.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new["BatchNorm_1"]["var"], whole.var(0), rtol=1e-3)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), stats["batch_stats"])


def test_what_cannot_be_estimated():
    params, stats = variables(Net())
    with pytest.raises(ValueError, match="there is no batch to estimate"):
        re_estimate_batch_norm(linen_apply(Net()), params, stats, [])
    with pytest.raises(ValueError, match="there is no collection 'batch_stats'"):
        re_estimate_batch_norm(linen_apply(Net()), params, {}, [X])

    def frozen(params, model_state, inputs, *, train, key):
        return linen_apply(Net())(params, model_state, inputs, train=False, key=key)

    with pytest.raises(ValueError, match=r"do not move in training mode(.|\n)*BatchNorm_0/mean"):
        re_estimate_batch_norm(frozen, params, stats, [X])


def folded_by_hand(params, stats, bits):
    """The folded weights, quantized by minimum and maximum, and the biases, written out."""
    out = []
    for layer in ("0", "1"):
        norm, own = params[f"BatchNorm_{layer}"], stats["batch_stats"][f"BatchNorm_{layer}"]
        scale = norm["scale"] / jnp.sqrt(own["var"] + 1e-5)
        w = params[f"Dense_{layer}"]["kernel"] * scale[None]
        fmt = Uniform(bits)
        out.append((fake(w, fmt, *calibrated(w, fmt)), norm["bias"] - own["mean"] * scale))
    return out


def by_hand(params, stats, x, bits=3):
    for w, b in folded_by_hand(params, stats, bits):
        x = jax.nn.relu(x @ w + b[None])
    return x


def test_the_folded_network_and_its_gradients_are_those_written_out():
    params, stats = variables(Net())
    folded = FoldedTraining(linen_apply(Net()), params, stats, X, fake_quant(Uniform(3), select="*/kernel"))
    ours, same = folded(params, stats, X, train=False, key=None)
    assert same is stats
    np.testing.assert_allclose(ours, by_hand(params, stats, X), rtol=1e-5, atol=1e-5)

    def loss(params, model):
        return jnp.sum(model(params) ** 2)

    mine = jax.jit(jax.grad(lambda p: loss(p, lambda p: folded(p, stats, X, train=False, key=None)[0])))(params)
    theirs = jax.grad(lambda p: loss(p, lambda p: by_hand(p, stats, X)))(params)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(mine))


def test_training_moves_statistics_as_the_model_does_and_what_is_deployed_is_what_was_simulated():
    params, stats = variables(Net())
    apply = linen_apply(Net())
    folded = FoldedTraining(apply, params, stats, X[:1], fake_quant(4, select="*/kernel"))
    tx = optax.adam(0.05)
    state = create(params, stats, tx, identity(), jax.random.key(0))
    step = make_train_step(classification_loss(folded), tx, identity())
    batch = Batch(X, jnp.arange(24) % 3, jnp.ones(24, bool))
    _, moved = apply(params, stats, X, train=True, key=None)
    losses = []
    for number in range(15):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if number == 0:
            for a, b in zip(jax.tree.leaves(state.model_state), jax.tree.leaves(moved)):
                np.testing.assert_allclose(a, b, rtol=1e-5)
    assert losses[-1] < losses[0]

    packed = folded.packed(state.params, state.model_state)
    seen = jax.jit(folded.view)(state.params, state.model_state)
    for name, leaf in unpack(packed).items():
        np.testing.assert_allclose(leaf, seen[name], rtol=1e-6, atol=1e-7)
    simulated, _ = folded(state.params, state.model_state, X, train=False, key=None)
    assert np.asarray(folded.apply(unpack(packed), X)).tobytes() == np.asarray(simulated).tobytes()


def test_folding_is_fold_batch_norm_for_any_values():
    params, stats = variables(Net())

    def apply(v, x):
        return Net().apply({"params": v["params"], **v["stats"]}, x)

    fold, folded = folding(apply, {"params": params, "stats": stats}, X)
    other = {"params": jax.tree.map(lambda a: 2 * a, params), "stats": stats}
    expected = fold_batch_norm(apply, other, X)[1]
    found = jax.jit(fold)(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(folded(found, X[:3]), apply(other, X[:3]), rtol=1e-4, atol=1e-5)


def test_a_transform_that_puts_other_parameters_in_place_is_refused():
    params, stats = variables(Net())
    with pytest.raises(ValueError, match="must keep the folded weights as they are"):
        FoldedTraining(linen_apply(Net()), params, stats, X, low_rank(1, select="*/kernel"))
