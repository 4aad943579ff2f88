"""NNX modules in training: the same steps as Linen's, in place as by hand, with batch norm, dropout, packing and saving."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lepton_jax as lepton
from lepton_jax.data import Batch
from lepton_jax.lowrank import low_rank
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    classification_loss,
    create,
    fit,
    linen_apply,
    make_evaluate,
    make_nnx_step,
    make_train_step,
    nnx_apply,
    nnx_begin,
)

RNG = np.random.default_rng(3)
X = jnp.asarray(RNG.standard_normal((12, 6)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 3, 12), jnp.int32)
BATCH = Batch(X, Y, jnp.ones(12, bool))


class Net(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.one, self.norm = nnx.Linear(6, 8, rngs=rngs), nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop, self.two = nnx.Dropout(rate, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(self.drop(nnx.relu(self.norm(self.one(x)))))


class Twin(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(nn.Dense(8, name="one")(x))
        return nn.Dense(3, name="two")(nn.relu(x))


def plain(state):
    """{path: array}, without random streams."""
    flat = nnx.to_flat_state(state)
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat if not isinstance(leaf, nnx.RngState)}


def test_steps_are_those_of_the_linen_twin():
    """Pruned and rounded to 4 bits: parameters, statistics and masks after three steps, then in evaluation."""
    module = Net(nnx.Rngs(0))
    _, params, model_state = nnx.split(module, nnx.Param, ...)
    as_dict = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))
    stats = {"batch_stats": {"norm": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}}
    transform, tx = (
        lepton.chain(lepton.prune(0.5, select="*/kernel"), lepton.fake_quant(bits=4, select="*/kernel")),
        optax.adam(0.1),
    )
    runs = {}
    for name, apply, own, state in (
        ("nnx", nnx_apply(module), params, model_state),
        ("linen", linen_apply(Twin()), as_dict, stats),
    ):
        run = create(own, state, tx, transform, jax.random.key(0))
        step = make_train_step(classification_loss(apply), tx, transform)
        for _ in range(3):
            run, metrics = step(run, BATCH)
        evaluate = make_evaluate(apply, transform, [BATCH])
        runs[name] = run, metrics, evaluate(run)
    (found, metrics, result), (expected, wanted, figures) = runs["nnx"], runs["linen"]
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
    assert result == pytest.approx(figures, rel=1e-5)
    flat = plain(found.params)
    for path, leaf in lepton.paths.flatten(expected.params).items():
        np.testing.assert_allclose(flat[path], leaf, rtol=1e-5, atol=1e-6)
        assert flat[path].dtype == leaf.dtype
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            plain(found.model_state)[f"norm/{name}"], expected.model_state["batch_stats"]["norm"][name], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(module.norm.mean[...], np.zeros(8))  # the module itself is as it was


def loss_fn(module, batch):
    logits = module(batch.images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean(), {"mean": logits.mean()}


def test_in_place_as_nnx_users_train_by_hand():
    ours, by_hand = Net(nnx.Rngs(1)), Net(nnx.Rngs(1))
    mine, theirs = (nnx.Optimizer(m, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param) for m in (ours, by_hand))
    step = make_nnx_step(loss_fn, lepton.identity())
    tstate = nnx_begin(ours, lepton.identity())
    for _ in range(3):
        tstate, metrics = step(ours, mine, tstate, BATCH)
        (loss, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(by_hand, BATCH)
        theirs.update(by_hand, grads)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        assert set(metrics) == {"loss", "mean"}
    for one, other in zip((ours, mine), (by_hand, theirs)):
        found, expected = plain(nnx.state(one)), plain(nnx.state(other))
        assert list(found) == list(expected)
        for path, leaf in expected.items():
            np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
    assert int(mine.step[...]) == 3


def test_pruned_packed_and_saved(tmp_path):
    module, transform = Net(nnx.Rngs(2), rate=0.3), lepton.prune(0.75, select="*/kernel")
    tstate = nnx_begin(module, transform)
    optimizer = nnx.Optimizer(module, optax.adamw(0.05), wrt=nnx.Param)
    step = make_nnx_step(loss_fn, transform)
    counts = [int(module.drop.rngs.count[...])]
    for _ in range(4):
        tstate, _ = step(module, optimizer, tstate, BATCH)
        counts.append(int(module.drop.rngs.count[...]))
    assert np.diff(counts).tolist() == [1, 1, 1, 1]  # other units drop out at every step
    params = transform.view(nnx.state(module, nnx.Param), tstate)
    assert float((params["one"]["kernel"][...] == 0).mean()) == 0.75
    nnx.update(module, params)
    module.eval()
    model = lepton.Model.from_nnx(module, X)
    model.save(tmp_path / "m.lepton")
    np.testing.assert_array_equal(lepton.load_model(tmp_path / "m.lepton")(X), model(X))


def test_a_module_in_train_mode_is_a_model_too():
    module = Net(nnx.Rngs(2), rate=0.5)
    assert lepton.Model.from_nnx(module, X)(X).shape == (12, 3)
    assert int(module.drop.rngs.count[...]) == 0


def test_dropout_follows_the_key_and_nothing_else():
    module = Net(nnx.Rngs(4), rate=0.5)
    _, params, state = nnx.split(module, nnx.Param, ...)
    apply = jax.jit(nnx_apply(module), static_argnames="train")
    first, after = apply(params, state, X, train=True, key=jax.random.key(1))
    again, _ = apply(params, state, X, train=True, key=jax.random.key(1))
    other, _ = apply(params, state, X, train=True, key=jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert int(after["drop"]["rngs"]["count"][...]) == 0
    unkeyed, went_on = apply(params, state, X, train=True, key=None)
    assert int(went_on["drop"]["rngs"]["count"][...]) == 1
    assert not np.array_equal(apply(params, went_on, X, train=True, key=None)[0], unkeyed)
    still, same = apply(params, state, X, train=False, key=None)
    np.testing.assert_array_equal(still, apply(params, state, X, train=False, key=jax.random.key(5))[0])
    assert jax.tree.structure(same) == jax.tree.structure(state)


def test_a_run_is_resumed_to_the_same_bits(tmp_path):
    """The loop, its checkpoints and dropout: six steps, and four, then two more from the file."""
    module, transform, tx = Net(nnx.Rngs(5), rate=0.5), lepton.prune(0.5, select="*/kernel"), optax.adam(0.01)
    step = make_train_step(classification_loss(nnx_apply(module)), tx, transform)

    def run(folder, steps, resume=False):
        _, params, model_state = nnx.split(module, nnx.Param, ...)
        state = create(params, model_state, tx, transform, jax.random.key(3))
        settings = FitSettings(steps=steps, checkpoint_every=2)
        with Checkpoints(folder) as checkpoints:
            return fit(state, step, lambda number: BATCH, settings, checkpoints=checkpoints, resume=resume)

    whole = run(tmp_path / "a", 6)
    run(tmp_path / "b", 4)
    resumed = run(tmp_path / "b", 6, resume=True)
    assert jax.tree.structure(whole) == jax.tree.structure(resumed)
    for one, other in ((whole.params, resumed.params), (whole.model_state, resumed.model_state)):
        jax.tree.map(np.testing.assert_array_equal, plain(one), plain(other))


def test_misuse_is_named():
    for make in (nnx_apply, lambda m: nnx_begin(m, lepton.identity())):
        with pytest.raises(TypeError, match=r"module must be a flax\.nnx\.Module; got"):
            make(nn.Dense(3))
    with pytest.raises(ValueError, match=r"must leave the parameters of a module their shapes.*make_train_step.*\n  .*kernel"):
        nnx_begin(Net(nnx.Rngs(0)), low_rank(2, select="one/kernel"))
