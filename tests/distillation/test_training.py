"""Every way of training, on tiny models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from distillation_models import BATCH, IMAGES, QUICK, conv_net, dense_net, hint

from lepton_jax import chain, fake_quant, identity, prune
from lepton_jax import distillation as d
from lepton_jax.data import batches, eval_batches, load_digits
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    batch_source,
    classification_loss,
    create,
    fit,
    make_evaluate,
    make_train_step,
)


@pytest.fixture(scope="module")
def digits():
    """The smallest smoke example: a teacher on digits, and its cached answers."""
    data = load_digits()
    apply, params = dense_net((48, 32), 0)
    tx = optax.adam(3e-3)
    state = create(params, {}, tx, identity(), jax.random.key(0))
    step = make_train_step(classification_loss(apply), tx, identity())
    source = batch_source(lambda k: batches(data.train, 64, seed=0, start_step=k))
    state = fit(state, step, source, FitSettings(steps=120, log_every=120, scan=40, progress=False))
    return data, d.as_teacher(apply, state)


def error(apply, state, split, transform=identity()):
    return make_evaluate(apply, transform, eval_batches(split, 360))(state)["error"]


def test_distillation_on_digits_beside_pruning_and_quantization(digits, tmp_path):
    """A student a third as wide, pruned and quantized to 4 bits in the same step, with checkpoints and metrics."""
    data, teacher = digits
    outputs = d.cache_outputs(teacher, data.train, tmp_path / "outputs", taps=("Dense_0",), progress=False)
    source = batch_source(lambda k: d.cached_batches(data.train, outputs, 64, seed=1, start_step=k))
    apply, params = dense_net((16, 16), 5)
    transform = chain(prune(0.5), fake_quant(bits=4))
    seen = []
    evaluate = make_evaluate(apply, transform, eval_batches(data.validation, 180))
    settings = d.Distill(
        terms=(d.LogitTerm(loss=partial(d.soft_targets, temperature=4.0), weight=0.5), hint("Dense_0", "Dense_0", weight=0.1))
    )
    with Checkpoints(tmp_path / "run") as checkpoints:
        state = d.distill(
            apply,
            params,
            {},
            source,
            settings,
            FitSettings(steps=150, log_every=150, evaluate_every=150, checkpoint_every=150, scan=50, progress=False),
            tx=optax.adam(2e-2),
            key=jax.random.key(2),
            transform=transform,
            labelled=partial(classification_loss, l2=1e-5),
            checkpoints=checkpoints,
            evaluate=lambda state: seen.append(evaluate(state)) or seen[-1],
        )
    assert seen[0]["error"] == evaluate(state)["error"] < 0.3
    kernels = [leaf["kernel"] for leaf in transform.view(state.params, state.tstate).values()]
    for kernel in kernels:  # 16 levels for each output
        assert max(len(np.unique(column)) for column in np.asarray(kernel).T) <= 16
        assert np.mean(np.asarray(kernel) == 0) >= 0.49
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, params)
    assert error(apply, state, data.test, transform) < 0.3


def test_the_adapters_train_and_the_transform_does_not_touch_them(teacher):
    apply, params, model_state = conv_net(2, 0)
    settings, transform = d.Distill(terms=(hint(),)), d.by_part({"student": prune(0.5)})
    source, tx = d.taught(lambda step: BATCH, d.teach(teacher, settings.teacher_taps)), optax.sgd(0.1)
    trained = d.with_adapters(settings, apply, params, model_state, source(0), jax.random.key(0))
    state = create(trained, {"student": model_state}, tx, transform, jax.random.key(1))
    before = jax.tree.map(np.array, state.params["adapters"])
    step = make_train_step(d.distillation_loss(apply, settings), tx, transform)
    losses = []
    for number in range(4):
        state, metrics = step(state, source(number))
        losses.append(float(metrics["hints"]))
    assert losses[-1] < losses[0]
    assert step._cache_size() == 1
    after = state.params["adapters"]
    assert all(np.all(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))
    view = transform.view(state.params, state.tstate)
    assert not any((np.asarray(leaf) == 0).any() for leaf in jax.tree.leaves(view["adapters"]))
    assert np.mean(np.asarray(view["student"]["Conv_1"]["kernel"]) == 0) == 0.5
    student = d.part(state, "student")
    assert jax.tree.structure(student.tstate) == jax.tree.structure(prune(0.5).init(params)[1])
    with pytest.raises(ValueError, match=r"no part 'tutor'\. The parts are: adapters, student"):
        d.part(state, "tutor")
    with pytest.raises(ValueError, match="no part tutor"):
        d.by_part({"tutor": prune(0.5)}).init(trained)


def test_mutual_learning(digits):
    data, _ = digits
    nets = {"a": dense_net((16,), 1), "b": dense_net((16, 12), 2)}
    applies = {name: apply for name, (apply, _) in nets.items()}
    params = {name: p for name, (_, p) in nets.items()}
    loss_fn = d.mutual_loss(applies, temperature=2.0, weight=0.5)
    batch, model_state, key = next(batches(data.train, 64, seed=0)), {"a": {}, "b": {}}, jax.random.key(0)
    (loss, (_, metrics)), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, model_state, batch, key)
    outputs = jax.jit(lambda ps: {n: applies[n](p, {}, batch.images, train=True, key=None)[0] for n, p in ps.items()})
    logits, total = outputs(params), 0.0
    divergence = jax.jit(lambda s, t: jnp.mean(d.soft_targets(s, t, 2.0)))
    for name, other in (("a", "b"), ("b", "a")):
        kl = divergence(logits[name], logits[other])
        np.testing.assert_allclose(metrics[f"{name}_mutual"], kl, rtol=1e-4)
        total += jax.jit(classification_loss(applies[name]))(params[name], {}, batch, key)[0] + 0.5 * kl
    np.testing.assert_allclose(loss, total, rtol=1e-5)

    # A peer's gradient is that of its own terms alone: nothing flows through the answers that it gives the other.
    def own(p):
        answers = applies["a"](p, {}, batch.images, train=True, key=None)[0]
        return classification_loss(applies["a"])(p, {}, batch, key)[0] + 0.5 * jnp.mean(
            d.soft_targets(answers, logits["b"], 2.0)
        )

    for a, b in zip(jax.tree.leaves(grads["a"]), jax.tree.leaves(jax.jit(jax.grad(own))(params["a"]))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    transform, tx = d.by_part({"a": prune(0.5)}), optax.adam(2e-2)
    state = create(params, model_state, tx, transform, key)
    source = batch_source(lambda k: batches(data.train, 64, seed=0, start_step=k))
    state = fit(
        state, make_train_step(loss_fn, tx, transform), source, FitSettings(steps=100, log_every=100, scan=50, progress=False)
    )
    assert error(applies["a"], d.part(state, "a"), data.test, prune(0.5)) < 0.3
    assert error(applies["b"], d.part(state, "b"), data.test) < 0.3
    with pytest.raises(ValueError, match="two peers or more; got a"):
        d.mutual_loss({"a": applies["a"]})


def test_generations_assistants_and_stages(teacher):
    """Each driver calls on the pure pieces with the right teacher, and the last model is the one trained last."""
    calls = []

    def train(width, seed, from_teacher):
        apply, params, model_state = conv_net(width, seed)
        source = d.taught(lambda step: BATCH, d.teach(from_teacher))
        state = d.distill(
            apply,
            params,
            model_state,
            source,
            d.Distill(terms=(d.LogitTerm(),)),
            QUICK,
            tx=optax.sgd(0.1),
            key=jax.random.key(seed),
        )
        calls.append((width, seed, from_teacher))
        return d.as_teacher(apply, state)

    second, third = d.born_again(teacher, lambda k, t: train(6, k, t), 2)
    assert calls == [(6, 1, teacher), (6, 2, second)]
    assert d.ensemble([d.teach(second), d.teach(third)])(IMAGES).logits.shape == (6, 3)
    middle, small = d.assistants(teacher, [partial(train, 4, 7), partial(train, 2, 8)])
    assert calls[2:] == [(4, 7, teacher), (2, 8, middle)]
    assert small.params["Dense_0"]["kernel"].shape == (4, 3)
    with pytest.raises(ValueError, match="generations must be a whole number from 1"):
        d.born_again(teacher, train, 0)
    with pytest.raises(ValueError, match="no model to train"):
        d.assistants(teacher, [])


def test_progressive_stages_leave_the_layers_behind_alone(teacher):
    apply, params, model_state = conv_net(2, 0)
    settings = d.Distill(terms=(hint(), hint("Conv_1", "Conv_1"), d.LogitTerm()), label_weight=0.5)
    seen, source = [], d.taught(lambda step: BATCH, d.teach(teacher, settings.teacher_taps))

    def train(number, stage, state):
        after = d.distill(
            apply,
            state.params,
            state.model_state,
            source,
            stage,
            QUICK,
            tx=optax.sgd(0.1),
            key=jax.random.fold_in(jax.random.key(0), number),
        )
        seen.append((stage, state.params, after.params))
        return after

    first = create(params, model_state, optax.sgd(0.1), identity(), jax.random.key(0))
    last = d.progressively(settings, train, first)
    assert [stage.names() for stage, _, _ in seen] == [("hints",), ("hints",), ("soft_targets",)]
    assert [stage.label_weight for stage, _, _ in seen] == [0.0, 0.0, 0.5]
    moved = [
        {name for name in before if not np.array_equal(before[name]["kernel"], after[name]["kernel"])}
        for before, after in (
            ({n: p for n, p in b.items() if "kernel" in p}, {n: p for n, p in a.items() if "kernel" in p}) for _, b, a in seen
        )
    ]
    assert moved == [{"Conv_0"}, {"Conv_0", "Conv_1"}, {"Conv_0", "Conv_1", "Dense_0"}]
    assert last.params is seen[-1][2]
    with pytest.raises(ValueError, match="needs a FeatureTerm to begin with"):
        d.stages(d.Distill(terms=(d.LogitTerm(),)))
