"""Pruning over whole runs: sweeps in one program, scores that are not finite, frozen masters, sharding, other optimisers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax import cast, chain, fake_quant, freeze, identity, prune
from lepton_jax.core.schedules import polynomial
from lepton_jax.pruning import check_scores, erk
from lepton_jax.pruning.criteria import Criterion
from lepton_jax.training import Checkpoints, FitSettings, create, fit, make_train_step

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)


def weights(seed=1):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(6, 7)), jnp.float32), "b": jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)}


def loss(params):
    return jnp.mean((jnp.tanh(X @ params["a"]) @ params["b"] - 1) ** 2)


def train(transform, params, state, steps=8):
    """Adam for a few steps, in one compiled program."""
    tx = optax.adam(0.05)

    def step(carry, number):
        params, state, moments = carry
        grads = jax.grad(lambda p: loss(transform.view(p, state)))(params)
        updates, moments = tx.update(grads, moments, params)
        params, state = transform.update(optax.apply_updates(params, updates), state, grads, number)
        return (params, state, moments), None

    return jax.lax.scan(step, (params, state, tx.init(params)), jnp.arange(steps))[0][:2]


def rising(target, **options):
    return prune(polynomial(target, begin=0, end=6), **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"allocation": erk}, {"scope": "global"}, {"gradient": "straight_through"}],
    ids=["uniform", "erk", "global", "straight_through"],
)
def test_states_of_several_sparsities_train_in_one_program(options):
    """Made separately and stacked; mask for mask what separate runs make, one of which asks for other counts than 7 of 42."""
    transforms = [rising(target, **options) for target in (0.5, 0.83, 0.9)]
    separate = [train(t, *t.init(weights())) for t in transforms]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[t.init(weights()) for t in transforms])
    together = jax.jit(jax.vmap(lambda params, state: train(transforms[0], params, state)))(*stacked)
    kept = []
    for i, (params, state) in enumerate(separate):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together[1].masks, state.masks)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), together[0], params)
        kept.append(sum(int(m.sum()) for m in state.masks.values()))
    assert kept[0] > kept[1] > kept[2] > 0


def test_a_traced_sparsity_is_swept_too():
    targets = [0.25, 0.5, 0.75]

    def run(target):
        transform = prune(target)
        return train(transform, *transform.init(weights()))[1].masks

    together = jax.jit(jax.vmap(run))(jnp.array(targets))
    for i, target in enumerate(targets):
        alone = train(prune(target), *prune(target).init(weights()))[1].masks
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)
        assert int(alone["b"].sum()) == 21 - round(target * 21)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("gradient", ["masked", "straight_through"])
def test_scores_that_are_not_finite_change_no_mask_and_are_reported(bad, gradient):
    transform = rising(0.5, gradient=gradient)
    params, state = transform.init(weights())
    update = jax.jit(transform.update)
    _, state = update(params, state, params, 2)
    row, column = np.argwhere(np.asarray(state.masks["b"]))[0]  # a weight that is kept
    broken = params | {"b": params["b"].at[row, column].set(bad)}
    after = update(broken, state, params, 3)[1]
    jax.tree.map(np.testing.assert_array_equal, after.masks, state.masks)
    assert float(after.sparsity) == float(state.sparsity)
    later = update(broken, update(params, after, params, 4)[1], params, 5)[1]
    assert sum(int(m.sum()) for m in later.masks.values()) < sum(int(m.sum()) for m in after.masks.values()), "4 went well"
    for found in (after, later, (state, {"x": after})):
        with pytest.raises(ValueError, match=r"must be finite(.|\n)*b: 1 scores are NaN or infinite at step 3$"):
            check_scores(found)
    check_scores(state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodFor(Criterion):
    """Magnitude for a number of updates, NaN from then on; no weight and no loss shows it."""

    updates: int

    def init(self, weight):
        return jnp.int32(0)

    def accumulate(self, state, weight, grad):
        return state + 1

    def scores(self, weight, state):
        return jnp.where(state > self.updates, jnp.nan, jnp.abs(weight))


def test_a_run_stops_where_scores_are_not_finite_and_saves_nothing_after(tmp_path):
    transform = rising(0.5, criterion=GoodFor(updates=5), gradient="straight_through", select="b")
    state = create(weights(), {}, optax.adam(0.05), transform, jax.random.key(0))
    step = make_train_step(train_step_loss, optax.adam(0.05), transform)
    settings = FitSettings(steps=12, log_every=4, checkpoint_every=4, progress=False)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"must be finite(.|\n)*\n  b: 21 scores are NaN or infinite at step 5$"):
            fit(state, step, np.float32, settings, checkpoints=checkpoints)
        checkpoints.wait()
        assert checkpoints.latest_step == 4


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_init_names_the_leaf_that_is_not_finite(scope):
    params = weights() | {"b": jnp.full((7, 3), jnp.nan)}
    with pytest.raises(ValueError, match=r"must be finite(.|\n)*\n  b: 21 scores are NaN or infinite at step 0$"):
        prune(0.5, scope=scope).init(params)


def test_what_is_pruned_may_be_anything():
    """Under a mask a NaN is no score, and is gone after the update."""
    transform = rising(0.8)
    params, state = transform.init(weights())
    _, state = jax.jit(transform.update)(params, state, params, 2)
    poisoned = {path: jnp.where(state.masks[path], leaf, jnp.nan) for path, leaf in params.items()}
    clean, after = jax.jit(transform.update)(poisoned, state, params, 4)
    check_scores(after)
    expected = jax.jit(transform.update)(params, state, params, 4)
    jax.tree.map(np.testing.assert_array_equal, (clean, after.masks), (expected[0], expected[1].masks))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in clean.values())


def test_frozen_masters_stay_at_zero_under_momentum():
    first = prune(0.5)
    params, state = first.init(weights())
    params, state = first.update(params, state, params, 0)
    frozen = chain(freeze(first, state), fake_quant(bits=8))
    assert freeze(frozen, ()).update is frozen.frozen_update
    params, states = frozen.init(params)
    drifted, _ = frozen.update(jax.tree.map(lambda w: w + 0.1, params), states, params, 1)
    again, _ = freeze(frozen, states).update(jax.tree.map(lambda w: w + 0.1, params), states, params, 1)
    for path, mask in state.masks.items():
        np.testing.assert_array_equal(drifted[path], np.where(mask, params[path] + 0.1, 0))
        np.testing.assert_array_equal(again[path], drifted[path])


def test_zeros_stay_zeros_through_quantization_and_casts():
    for later in (fake_quant(bits=3, symmetric=False), fake_quant(bits=4), cast(jnp.bfloat16)):
        transform = chain(prune(0.7), later)
        params, states = transform.init({"w": weights()["a"] + 3.0})  # all of one sign: 0 lies outside their range
        seen = np.asarray(transform.view(params, states)["w"], np.float32)
        mask = np.asarray(states[0].masks["w"])
        assert (seen[~mask] == 0).all()
        assert (seen[mask] != 0).all()


def train_step_loss(params, model_state, batch, key):
    del batch, key
    return loss(params), (model_state, {})


def test_masks_survive_a_checkpoint_and_a_change_of_optimiser(tmp_path):
    transform = rising(0.8)
    state = create(weights(), {}, optax.adam(0.05), transform, jax.random.key(0))
    step = make_train_step(train_step_loss, optax.adam(0.05), transform)
    for _ in range(3):
        state, _ = step(state, 0)
    saved = Checkpoints(tmp_path)
    saved.save(3, state, {})
    saved.wait()
    fresh = create(weights(9), {}, optax.adam(0.05), transform, jax.random.key(5))
    restored, _ = saved.restore(fresh)
    jax.tree.map(np.testing.assert_array_equal, restored.tstate, state.tstate)
    momentum = optax.sgd(0.05, momentum=0.9)
    other = restored._replace(opt_state=momentum.init(restored.params))
    before = jax.tree.map(np.asarray, restored.tstate.masks)
    step = make_train_step(train_step_loss, momentum, transform)
    for _ in range(4):
        other, _ = step(other, 0)
    for path, mask in other.tstate.masks.items():
        size = mask.size
        assert int(mask.sum()) == size - round(0.8 * size)
        assert not (np.asarray(mask) & ~before[path]).any()
        assert not np.asarray(other.params[path])[~np.asarray(mask)].any()


def test_masks_are_spread_as_their_parameters():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    along = {"a": NamedSharding(mesh, PartitionSpec(None, "x")), "b": NamedSharding(mesh, PartitionSpec("x"))}
    whole = {"a": jnp.asarray(np.random.default_rng(3).normal(size=(6, 8)), jnp.float32), "b": jnp.ones((8, 3))}
    params = jax.device_put(whole, along)
    transform = rising(0.5)
    expected = transform.update(*transform.init(whole), whole, 6)
    masters, state = jax.jit(transform.init)(params)
    masters, state = jax.jit(transform.update)(masters, state, params, 6)
    for path, mask in state.masks.items():
        np.testing.assert_array_equal(mask, expected[1].masks[path])
        assert mask.sharding.is_equivalent_to(params[path].sharding, mask.ndim), path
        assert masters[path].sharding.is_equivalent_to(params[path].sharding, mask.ndim), path


def test_plain_and_unpruned_runs_agree():
    """A sparsity of 0 trains as no pruning does."""
    pruned, _ = train(prune(0.0), *prune(0.0).init(weights()))
    plain, _ = train(identity(), weights(), ())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), pruned, plain)
