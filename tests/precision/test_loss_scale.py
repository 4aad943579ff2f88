"""Loss scaling: exact trajectories, recovery from overflow, steps skipped whole, unscaling before clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import identity, prune
from lepton_jax.precision import DynamicScale, LossScale, NoScale, Policy, StaticScale, autocast, scaled, unscaled
from lepton_jax.training import TrainState, create, make_train_step


def reference(settings: DynamicScale, finite: list[bool]) -> list[tuple[float, int, int]]:
    """The rule in plain Python."""
    scale, count, skipped, rows = settings.initial, 0, 0, []
    for good in finite:
        if good:
            count += 1
            if count == settings.period:
                scale, count = min(scale * settings.factor, settings.ceiling), 0
        else:
            scale, count, skipped = max(scale / settings.factor, settings.floor), 0, skipped + 1
        rows.append((scale, count, skipped))
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_the_trajectory_is_exact_under_jit_and_flattening(seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = DynamicScale(initial=2.0**6, period=int(rng.integers(1, 4)), factor=4.0, floor=8.0, ceiling=2.0**9)
    finite = (rng.random(60) < 0.7).tolist()
    update, state, rows = jax.jit(settings.update), settings.init(), []
    for good in finite:
        leaves, tree = jax.tree.flatten(state)
        state = update(jax.tree.unflatten(tree, leaves), jnp.array(good))
        rows.append((state.scale.item(), state.finite.item(), state.skipped.item()))
        assert (state.scale.dtype, state.finite.dtype, state.skipped.dtype) == (jnp.float32, jnp.int32, jnp.int32)
    assert rows == reference(settings, finite)
    assert {512.0, 8.0} <= {row[0] for row in rows}  # both bounds were met


def test_a_floor_of_8_stays_8_after_many_overflows() -> None:
    settings = DynamicScale(initial=64.0, period=2, floor=8.0)
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: (settings.update(s, jnp.array(False)), None), s, length=100))(
        settings.init()
    )
    assert (state.scale.item(), state.skipped.item()) == (8.0, 100)


def quadratic(params: dict, model_state: dict, batch: jax.Array, key: jax.Array) -> tuple:
    """Loss 3 w . batch: its gradient is 3 batch, wherever w is."""
    return jnp.sum(3 * params["w"] * batch), ({"seen": model_state["seen"] + 1}, {})


def begin(tx: optax.GradientTransformation, loss_scale: LossScale | None, transform: object = None) -> TrainState:
    state = {"seen": jnp.float32(0)}
    return create({"w": jnp.arange(1.0, 5)[None]}, state, tx, transform or identity(), jax.random.key(0), loss_scale=loss_scale)


def test_a_step_that_is_not_finite_is_skipped_whole() -> None:
    tx, transform, settings = optax.adam(0.1), prune(0.5, interval=1), DynamicScale(initial=16.0, period=2, floor=4.0)
    state = begin(tx, settings, transform)
    step = make_train_step(quadratic, tx, transform, loss_scale=settings)
    seen, good = [], jnp.ones((1, 4))
    for bad in (False, True, True, True, False, False):
        before = jax.tree.map(np.asarray, jax.device_get(state._replace(key=())))
        state, metrics = step(state, good * jnp.inf if bad else good)
        seen.append((metrics["loss_scale"].item(), metrics["skipped"].item(), metrics["skipped_steps"].item()))
        if bad:
            for name in ("params", "model_state", "opt_state", "tstate"):
                jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
        else:
            assert float(state.model_state["seen"]) == float(before.model_state["seen"]) + 1
    assert seen == [(16, 0, 0), (16, 1, 1), (8, 1, 2), (4, 1, 3), (4, 0, 3), (4, 0, 3)]
    assert (state.step.item(), state.loss_scale.scale.item(), state.loss_scale.finite.item()) == (6, 8.0, 0)
    assert state.opt_state[0].count.item() == 3


def test_scaling_changes_no_finite_step() -> None:
    ends = []
    for settings in (None, NoScale(), StaticScale(scale=1024.0), DynamicScale(initial=256.0, period=1)):
        tx = optax.sgd(0.25, momentum=0.5)
        state, step = begin(tx, settings), make_train_step(quadratic, tx, identity(), loss_scale=settings)
        for number in range(3):
            state, metrics = step(state, jnp.full((1, 4), float(number)))
            assert metrics["loss"].dtype == jnp.float32
        ends.append(np.asarray(state.params["w"]))
    for end in ends[1:]:
        np.testing.assert_array_equal(end, ends[0])


def test_off_it_is_the_step_without() -> None:
    tx = optax.sgd(0.1)
    state, step = begin(tx, None), make_train_step(quadratic, tx, identity())
    text = str(jax.make_jaxpr(step)(state, jnp.ones((1, 4))))
    assert "is_finite" not in text
    assert "select_n" not in text
    assert jax.tree.leaves(state.loss_scale) == []


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    """The gradient (3, 3, 3, 3) has norm 6, and is clipped to 3: a step of 1.5 each."""
    tx, settings = optax.chain(optax.clip_by_global_norm(3.0), optax.sgd(1.0)), StaticScale(scale=256.0)
    state, step = begin(tx, settings), make_train_step(quadratic, tx, identity(), loss_scale=settings)
    start = np.asarray(state.params["w"])
    state, _ = step(state, jnp.ones((1, 4)))
    np.testing.assert_allclose(start - state.params["w"], np.full((1, 4), 1.5), rtol=1e-6)
    # In the other order the step would be 256 times too short.
    grads = {"w": jnp.full((1, 4), 3.0 * 256)}
    clipped, _ = tx.update(grads, tx.init(grads))
    wrong = unscaled(clipped, settings.init())
    np.testing.assert_allclose(-wrong["w"], np.full((1, 4), 1.5 / 256), rtol=1e-6)


def test_accumulation_takes_unscaled_finite_gradients() -> None:
    """Two finite batches make one optimiser step of their mean; the one between that overflows takes no part."""
    tx, settings = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2), DynamicScale(initial=16.0, period=1, ceiling=64.0)
    tx = tx.gradient_transformation()
    state, step = begin(tx, settings), make_train_step(quadratic, tx, identity(), loss_scale=settings)
    start = np.asarray(state.params["w"])
    for size in (1.0, float("inf"), 3.0):
        state, _ = step(state, jnp.full((1, 4), size))
    np.testing.assert_allclose(start - state.params["w"], np.full((1, 4), 6.0), rtol=1e-6)


def tiny_gradients(apply: object) -> object:
    """A loss whose gradients are about 1e-8: below what float16 holds (6e-8)."""

    def loss_fn(params: dict, model_state: dict, batch: tuple, key: jax.Array) -> tuple:
        x, y = batch
        return jnp.mean((apply(params, x) - y) ** 2) * 1e-8, (model_state, {})

    return loss_fn


def mlp(params: dict, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def fp16_run(settings: LossScale | None, steps: int = 40) -> tuple[list[float], list[float], TrainState]:
    rng = np.random.default_rng(3)
    params = {name: jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32) for name, shape in (("a", (4, 8)), ("b", (8, 2)))}
    x = rng.normal(size=(32, 4)).astype(np.float32)
    batch = (x, x @ rng.normal(size=(4, 2)).astype(np.float32))
    tx, loss_fn = optax.sgd(1e7), tiny_gradients(autocast(mlp, Policy(compute_dtype="float16")))
    state = create(params, {}, tx, identity(), jax.random.key(0), loss_scale=settings)
    step, losses, scales = make_train_step(loss_fn, tx, identity(), loss_scale=settings), [], []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        scales.append(float(metrics.get("loss_scale", 1.0)))
    return losses, scales, state


def test_float16_fails_without_scaling_and_trains_with_it() -> None:
    without, _, _ = fp16_run(None)
    assert without[-1] == without[0], "every gradient was flushed to zero: nothing moved"
    for settings in (StaticScale(scale=2.0**20), DynamicScale(initial=2.0**20, period=10)):
        losses, _, _ = fp16_run(settings)
        assert losses[-1] < 0.2 * losses[0]


def test_a_run_that_overflows_recovers() -> None:
    """From 2**60 every gradient is infinite in float16 until the scale has come down; then it trains."""
    settings = DynamicScale(initial=2.0**60, period=1000, ceiling=2.0**60)
    losses, scales, state = fp16_run(settings, steps=80)
    skipped = int(state.loss_scale.skipped)
    assert 10 < skipped < 30
    assert scales == [2.0 ** (60 - min(number, skipped)) for number in range(80)]
    assert losses[skipped] == losses[0], "nothing moved while steps were skipped"
    assert losses[-1] < 0.2 * losses[0]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))


def test_float16_losses_are_scaled_in_float32() -> None:
    assert scaled(jnp.float16(1000), StaticScale(scale=2.0**15).init()).item() == 1000 * 2.0**15


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"DynamicScale:\n  factor: must be above 1; got 1\n  0 < floor <= initial"):
        DynamicScale(factor=1, floor=4.0, initial=2.0)
    with pytest.raises(ValueError, match="period must be a whole number from 1 up; got 0"):
        DynamicScale(period=0)
    with pytest.raises(ValueError, match="StaticScale: scale must be positive and finite; got 0"):
        StaticScale(scale=0)
