"""Taps, adapters, and the loss that is made of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_models import BATCH, IMAGES, ConvNet, conv_net, hint

from lepton_jax import distillation as d
from lepton_jax.training import classification_loss


def test_taps_are_the_models_own_values(teacher):
    variables = {"params": teacher.params, **teacher.model_state}
    logits, extra = ConvNet(6).apply(variables, IMAGES, capture_intermediates=True, mutable=["intermediates"])
    outputs = d.teach(teacher, ("Conv_*", "Dense_0", "BatchNorm_0"))(IMAGES)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)
    inner = {name: values["__call__"][0] for name, values in extra["intermediates"].items() if name != "__call__"}
    for tap, names in {"Conv_*": ["Conv_0", "Conv_1"], "Dense_0": ["Dense_0"], "BatchNorm_0": ["BatchNorm_0"]}.items():
        assert len(outputs.features[tap]) == len(names)
        for value, name in zip(outputs.features[tap], names):
            np.testing.assert_allclose(value, inner[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_tap_that_matches_nothing_names_what_there_is(teacher):
    with pytest.raises(ValueError, match=r"teacher tap: select='Conv_7' matches no value.*Conv_0.*Conv_1.*dot_general"):
        d.teach(teacher, ("Conv_7",))(IMAGES)
    apply, params, model_state = conv_net(2, 0)
    batch = d.taught(lambda step: BATCH, d.teach(teacher, ("Conv_0",)))(0)
    with pytest.raises(ValueError, match=r"student tap: select='Dense_5' matches no value.*Dense_0"):
        d.with_adapters(d.Distill(terms=(hint("Dense_5"),)), apply, params, model_state, batch, jax.random.key(0))


def test_adapters_take_the_captured_shapes(teacher):
    apply, params, model_state = conv_net(2, 0)
    terms = (
        hint(("Conv_0", "Conv_1"), "Conv_*"),
        hint("Dense_0", "Dense_0"),
        hint(loss=d.vid, adapter=d.Gaussian(variance=2.0)),
        hint(loss=partial(d.crd, population=6), adapter=d.Projections(width=7)),
        hint(loss=d.attention_transfer, adapter=d.Plain()),
        hint("Conv_0", "Conv_1"),  # 4 x 4 pooled to 2 x 2
    )
    settings = d.Distill(terms=terms)
    assert settings.names() == ("hints", "hints_1", "vid", "crd", "attention_transfer", "hints_2")
    batch = d.taught(lambda step: BATCH, d.teach(teacher, settings.teacher_taps))(0)
    both = d.with_adapters(settings, apply, params, model_state, batch, jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, both["adapters"])
    affine = lambda a, b: {"bias": (b,), "kernel": (a, b)}  # noqa: E731
    assert shapes == {
        "hints": {"0": affine(2, 6), "1": affine(4, 12)},
        "hints_1": {"0": affine(3, 3)},
        "vid": {"0": affine(2, 6) | {"raw_variance": (6,)}},
        "crd": {"0": {"student": affine(32, 7), "teacher": affine(96, 7)}},
        "hints_2": {"0": affine(2, 12)},
    }
    np.testing.assert_allclose(jax.nn.softplus(both["adapters"]["vid"]["0"]["raw_variance"]), 2, rtol=1e-6)
    assert jax.tree.map(np.shape, both["student"]) == jax.tree.map(np.shape, params)

    loss_fn = d.distillation_loss(apply, settings)
    run = jax.jit(jax.grad(loss_fn, has_aux=True))
    grads, (new_state, metrics) = run(both, {"student": model_state}, batch, jax.random.key(1))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads["adapters"]))
    assert set(metrics) == {"error", "label_loss", *settings.names()}
    before, after = (s["batch_stats"]["BatchNorm_0"]["mean"] for s in (model_state, new_state["student"]))
    assert not np.allclose(before, after)

    # By hand: the first hint is the mean of two, each of the student's training-mode features through its own map.
    student = {"params": params, **model_state}
    options = {"train": True, "capture_intermediates": True, "mutable": ["intermediates", "batch_stats"]}
    _, extra = jax.jit(partial(ConvNet(2).apply, **options))(student, IMAGES)
    pairs = []
    for i, name in enumerate(["Conv_0", "Conv_1"]):
        a = both["adapters"]["hints"][str(i)]
        mapped = np.asarray(extra["intermediates"][name]["__call__"][0]) @ np.asarray(a["kernel"])
        pairs.append(np.mean((mapped - np.asarray(batch.teacher.features["Conv_*"][i])) ** 2) / 2)
    np.testing.assert_allclose(metrics["hints"], np.mean(pairs), rtol=1e-5)


def test_the_loss_is_the_weighted_sum_and_the_labels_loss_is_the_ordinary_one(teacher):
    apply, params, model_state = conv_net(2, 0)
    settings = d.Distill(
        terms=(
            d.LogitTerm(loss=partial(d.soft_targets, temperature=4.0), weight=0.7),
            d.LogitTerm(loss=d.dkd, weight=0.1),
            d.LogitTerm(loss=d.teacher_free, weight=0.2),
            d.FeatureTerm(loss=d.rkd_distance, student="Conv_0", teacher="Conv_0", weight=2.0),
            d.FeatureTerm(
                loss=d.fsp,
                student=("Conv_0", "Conv_1"),
                teacher=("Conv_0", "Conv_1"),
                adapter=d.Linear(),
                together=True,
                weight=0.01,
            ),
        ),
        label_weight=0.3,
    )
    batch = d.taught(lambda step: BATCH, d.teach(teacher, settings.teacher_taps))(0)
    both = d.with_adapters(settings, apply, params, model_state, batch, jax.random.key(0))
    labelled = partial(classification_loss, l2=1e-2)
    loss, (_, metrics) = jax.jit(d.distillation_loss(apply, settings, labelled=labelled))(
        both, {"student": model_state}, batch, jax.random.key(1)
    )
    alone, (_, others) = jax.jit(labelled(apply))(params, model_state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["label_loss"], alone, rtol=1e-6)
    assert metrics["error"] == others["error"]
    weights = {name: term.weight for name, term in zip(settings.names(), settings.terms)}
    total = 0.3 * alone + sum(weight * metrics[name] for name, weight in weights.items())
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    logits, _ = jax.jit(partial(apply, train=True, key=None))(params, model_state, IMAGES)
    np.testing.assert_allclose(metrics["dkd"], jnp.mean(jax.jit(d.dkd)(logits, batch.teacher.logits, BATCH.labels)), rtol=1e-4)
    assert metrics["fsp"] > 0


def test_errors_name_both_shapes_and_both_taps(teacher):
    apply, params, model_state = conv_net(2, 0)
    key, batch = jax.random.key(0), d.taught(lambda step: BATCH, d.teach(teacher, ("Conv_0", "Conv_1", "Conv_*", "Dense_0")))(0)

    def loss(term):
        settings = d.Distill(terms=(term,))
        trained = d.with_adapters(settings, apply, params, model_state, batch, key)
        return d.distillation_loss(apply, settings)(trained, {"student": model_state}, batch, key)

    where = r"At student 'Conv_0' \(6, 4, 4, 2\), teacher 'Conv_0' \(6, 4, 4, 6\)\."
    with pytest.raises(ValueError, match=r"hints: .*\(6, 4, 4, 2\) and \(6, 4, 4, 6\)\. " + where):
        loss(hint(adapter=d.Plain()))
    with pytest.raises(ValueError, match=r"one rank.*\(6, 4, 4, 2\) and \(6, 3\)"):
        loss(hint("Conv_0", "Dense_0", adapter=d.Plain()))
    with pytest.raises(ValueError, match=r"\('Conv_0',\) match 1 values and the teacher's \('Conv_\*',\) match 2"):
        loss(hint("Conv_0", "Conv_*"))
    with pytest.raises(ValueError, match="no features for BatchNorm_0; there are: Conv_"):
        loss(hint("Conv_0", "BatchNorm_0"))
    with pytest.raises(ValueError, match=r"soft_targets need a teacher's outputs.*a Batch, has no `teacher`"):
        d.with_adapters(d.Distill(terms=(d.LogitTerm(),)), apply, params, model_state, BATCH, key)


def test_settings_are_checked_and_read_the_same_everywhere():
    term = d.LogitTerm(loss=partial(d.dkd, beta=2.0), weight=0.5)
    settings = d.Distill(terms=(term, hint()))
    assert repr(settings) == (
        "Distill(terms=(LogitTerm(loss=dkd(beta=2.0), weight=0.5), FeatureTerm(loss=hints, student=('Conv_0',), "
        "teacher=('Conv_0',), weight=1.0, adapter=Linear())), label_weight=1.0)"
    )
    with pytest.raises(ValueError, match="weight must be 0 or more; got -1"):
        d.LogitTerm(weight=-1)
    with pytest.raises(TypeError, match="crd requires population, student, teacher"):
        d.LogitTerm(loss=d.crd)
    with pytest.raises(ValueError, match="nothing to learn from"):
        d.Distill(label_weight=0.0)
    with pytest.raises(ValueError, match="label_weight: must be 0 or more; got nan"):
        d.Distill(label_weight=float("nan"))
    with pytest.raises(TypeError, match="LogitTerm or FeatureTerm; got a function"):
        d.Distill(terms=(d.soft_targets,))
    with pytest.raises(ValueError, match="needs a tap"):
        hint(student=())
    with pytest.raises(ValueError, match="dtype must be floating"):
        d.Teacher(apply=None, params={}, dtype="int8")
