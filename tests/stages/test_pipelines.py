"""Pipelines over devices: schedules, gradients, transforms, keys, kept bytes, and what they refuse."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import identity, prune, stages
from lepton_jax.core import paths
from lepton_jax.models import Transformer
from lepton_jax.stages.pipeline import (
    GPipe,
    LeafGradient,
    OneFOneB,
    VerifiedGradients,
    kept_bytes,
    microbatches,
    pipeline,
    pipeline_step,
)
from lepton_jax.stages.pipeline.gradients import Run, make_stages
from lepton_jax.stages.pipeline.schedules import in_turn
from lepton_jax.stages.unit import program_at
from lepton_jax.training import create

KEY = jax.random.key(0)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


PARAMS = {"in": draw(0, 5, 8), "tied": draw(1, 8, 8), "mid": draw(2, 8, 8), "out": draw(3, 8, 3), "unread": draw(4, 2)}
BATCH = {"x": draw(5, 8, 5), "y": jnp.arange(8) % 3}


def loss_fn(params, model_state, batch, key):
    """A tied matrix, dropout, a running mean, a metric."""
    x = jnp.tanh(jnp.tanh(batch["x"] @ params["in"]) @ params["tied"])
    x = jnp.tanh(jnp.tanh(x * jax.random.bernoulli(key, 0.8, x.shape) @ params["mid"]) @ params["tied"])
    logits = x @ params["out"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    state = {"mean": 0.9 * model_state["mean"] + 0.1 * x.mean(0), "count": model_state["count"] + 1}
    return loss, (state, {"error": jnp.mean(logits.argmax(-1) != batch["y"])})


STATE = {"mean": jnp.zeros(8), "count": jnp.int32(0)}


def planned(count, parts=4):
    return stages.plan(loss_fn, PARAMS, STATE, microbatches(BATCH, parts)[0], jax.random.key(0), count=count)


def begun(transform=None, tx=None):
    return create(PARAMS, STATE, tx or optax.sgd(1.0), transform or identity(), jax.random.key(7))


def accumulated(params, key, count=4):
    """Means over microbatches by the whole model, each with a key of its own."""
    run, sums = jax.jit(jax.value_and_grad(loss_fn, has_aux=True)), None
    for number, micro in enumerate(microbatches(BATCH, count)):
        found = run(params, STATE, micro, jax.random.fold_in(key, number))
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    return jax.tree.map(lambda leaf: leaf / count, sums)


@pytest.mark.parametrize("schedule", [GPipe(4), OneFOneB(4)])
@pytest.mark.parametrize("count", [2, 3])
def test_a_step_is_that_of_accumulation_over_the_whole(count, schedule):
    step = pipeline_step(planned(count), loss_fn, optax.sgd(1.0), identity(), jax.devices(), schedule)
    before = jax.tree.map(np.array, begun().params)
    state, metrics = step(begun(), BATCH)
    (loss, (model_state, error)), grads = accumulated(PARAMS, jax.random.fold_in(jax.random.key(7), 0))
    assert metrics["loss"] == loss
    assert metrics["error"] == error["error"]
    for path, leaf in paths.flatten(state.params).items():
        expected = before[path] - np.asarray(paths.flatten(grads)[path])
        np.testing.assert_array_equal(leaf, expected, err_msg=path)
        assert leaf.dtype == expected.dtype
    np.testing.assert_allclose(state.model_state["mean"], model_state["mean"], rtol=1e-6)
    assert int(state.model_state["count"]) == int(state.step) == 1


def test_a_threshold_is_over_all_stages_and_training_learns():
    transform, tx = prune(0.5, scope="global"), optax.adam(0.02)
    losses = []
    for schedule in (GPipe(4), OneFOneB(4)):
        state = begun(transform, tx)
        step = pipeline_step(planned(2), loss_fn, tx, transform, jax.devices()[2:], schedule)
        found = []
        for _ in range(12):
            state, metrics = step(state, BATCH)
            found.append(float(metrics["loss"]))
        seen = transform.view(state.params, state.tstate)
        weights = [np.asarray(seen[name]).ravel() for name in ("in", "tied", "mid", "out")]
        zeros = [float((one == 0).mean()) for one in weights]
        total = np.concatenate(weights)
        assert abs((total == 0).mean() - 0.5) < 0.02
        assert max(zeros) - min(zeros) > 0.02  # one threshold, not one a matrix
        assert found[-1] < found[0]
        losses.append(found)
    assert losses[0] == losses[1]


def test_one_forward_one_backward_keeps_half_of_the_bytes():
    plan, key, count = planned(2, 8), jax.random.key(0), 8
    inputs = [jax.tree.leaves((STATE, micro, key)) for micro in microbatches(BATCH, count)]
    made = make_stages(plan, program_at(plan, loss_fn, PARAMS, (STATE, microbatches(BATCH, count)[0], key)))
    most = {}
    for schedule in (GPipe(count), OneFOneB(count)):
        devices = jax.devices()[:2]
        run = Run(made, [jax.device_put(dict(part), place) for part, place in zip(plan.split(PARAMS), devices)], devices)
        run(schedule, inputs)
        assert run.kept == 0
        most[type(schedule)] = run.most_kept
        assert run.most_kept == kept_bytes(schedule, [facts.bytes_in for facts in plan.stages_of])
        assert {leaf.devices().pop() for leaf in run.sums[1].values()} == {devices[1]}
    assert most[OneFOneB] <= most[GPipe] / 2


@pytest.mark.parametrize("schedule", [GPipe(4), OneFOneB(4)])
def test_gradients_are_verified_leaf_by_leaf(schedule):
    args = (PARAMS, STATE, BATCH, jax.random.key(3), schedule)
    found = stages.verify_gradients(planned(2), loss_fn, *args, devices=jax.devices()[:2])
    assert found.bits_differ == 0
    assert not found.loss_differs
    assert {leaf.path for leaf in found.leaves} == {"in", "tied", "mid", "out"}
    assert found.elements == sum(PARAMS[name].size for name in ("in", "tied", "mid", "out"))
    assert "bit for bit" in str(found)


def test_where_the_compiler_sums_otherwise_it_is_said():
    net = Transformer(vocabulary=11, depth=1, width=16, heads=2)
    x = jnp.arange(24).reshape(4, 6) % 11
    params = net.init(jax.random.key(0), x)["params"]

    def loss(params, state, batch, key):
        logits = net.apply({"params": params}, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, (batch + 1) % 11).mean(), (state, {})

    plan = stages.plan(loss, params, {}, x[:2], jax.random.key(0), count=2)
    one, other = (
        stages.verify_gradients(plan, loss, params, {}, x, jax.random.key(0), schedule) for schedule in (GPipe(2), OneFOneB(2))
    )
    assert one == other  # the schedule changes no bit
    assert one.largest < 1e-5  # and a cut at most last ones
    assert str(one).startswith(f"{one.bits_differ} of {one.elements} elements differ")
    made = VerifiedGradients(
        leaves=(
            LeafGradient(path="a/kernel", elements=8, bits_differ=2, largest=1e-7),
            LeafGradient(path="b", elements=4, bits_differ=4, largest=3e-7),
            LeafGradient(path="c", elements=1, bits_differ=0, largest=0.0),
        ),
        loss_differs=True,
    )
    lines = str(made).splitlines()
    assert lines[0].startswith("6 of 13 elements differ, by 3.0e-07 of the largest at most; the losses differ, too.")
    assert [line.split()[0] for line in lines[2:]] == ["b", "a/kernel"]


@pytest.mark.parametrize(("stages_", "count"), [(1, 1), (2, 5), (4, 3), (3, 8)])
def test_schedules_do_everything_once_and_in_an_order_that_can_be(stages_, count):
    for schedule in (GPipe(count), OneFOneB(count)):
        order = in_turn(schedule, stages_)
        assert sorted(order) == sorted(
            (what, s, m) for what in ("forward", "backward") for s in range(stages_) for m in range(count)
        )
        place = {task: n for n, task in enumerate(order)}
        for what, stage, number in order:
            if what == "forward" and stage:
                assert place["forward", stage - 1, number] < place[what, stage, number]
            if what == "backward":
                later = ("backward", stage + 1, number) if stage + 1 < stages_ else ("forward", stage, number)
                assert place[later] < place[what, stage, number]


def test_inference_gives_what_the_stages_give_in_order():
    def apply(v, x):
        return jnp.sin(jnp.tanh(x @ v["in"]) @ v["mid"])

    batches = [draw(n, 4, 5) for n in range(5)]
    run = pipeline(stages.plan(apply, PARAMS, batches[0], count=2), apply, PARAMS, jax.devices()[:2], ahead=2)
    outs = list(run(iter(batches)))
    assert len(outs) == 5
    for out, x in zip(outs, batches):
        np.testing.assert_array_equal(out, jax.jit(apply)(PARAMS, x))
    assert list(run([])) == []


def test_bad_pipelines_are_refused_in_one_line():
    plan, tx = planned(2), optax.sgd(0.1)
    small = pipeline_step(plan, loss_fn, tx, identity(), jax.devices(), GPipe(3))
    other = pipeline_step(plan, lambda p, s, b, k: (p["in"].sum(), (s, {})), tx, identity(), jax.devices(), GPipe(4))
    cases = [
        (
            lambda: pipeline_step(plan, loss_fn, tx, identity(), jax.devices()[:1], GPipe(2)),
            "2 stages need a device each; got 1",
        ),
        (
            lambda: stages.verify_gradients(plan, loss_fn, PARAMS, STATE, BATCH, KEY, GPipe(4), devices=jax.devices()[:1]),
            "2 stages need a device each; got 1",
        ),
        (
            lambda: stages.verify_gradients(plan, loss_fn, PARAMS, STATE, BATCH, KEY, GPipe(3)),
            "must have a first axis that 3 divides",
        ),
        (lambda: pipeline_step(plan, loss_fn, tx, identity(), jax.devices(), 4), "schedule must be a GPipe or a OneFOneB"),
        (lambda: pipeline(plan, loss_fn, PARAMS, jax.devices()[:1]), "2 stages need a device each; got 1"),
        (lambda: pipeline(plan, loss_fn, PARAMS, jax.devices(), ahead=0), "ahead must be 1 or more"),
        (lambda: GPipe(0), "microbatches must be a whole number from 1"),
        (lambda: OneFOneB(0), "microbatches must be a whole number from 1"),
        (lambda: small(begun(), BATCH), "must have a first axis that 3 divides"),
        (lambda: other(begun(), BATCH), "this function has other operations"),
    ]
    for call, said in cases:
        with pytest.raises((ValueError, TypeError), match=re.compile(said)):
            call()
