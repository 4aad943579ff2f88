"""Taps, adapters, teachers, the cache, and every way of training, on tiny models."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lepton_jax import chain, fake_quant, identity, low_rank, pack, prune
from lepton_jax import distillation as d
from lepton_jax.data import Batch, Split, batches, eval_batches, load_digits
from lepton_jax.models import LeNet300
from lepton_jax.packed import is_packed
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    batch_source,
    classification_loss,
    create,
    fit,
    linen_apply,
    make_evaluate,
    make_train_step,
)


class ConvNet(nn.Module):
    """Two maps of different sizes, batch norm, and a head; sizes by width."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(self.width, (3, 3))(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def conv_net(width, seed):
    module = ConvNet(width)
    variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, 4, 4, 1)))
    return linen_apply(module), variables["params"], {"batch_stats": variables["batch_stats"]}


def dense_net(hidden, seed, inputs=64, classes=10):
    module = LeNet300(hidden=hidden, classes=classes)
    return linen_apply(module), jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, inputs)))["params"]


IMAGES = np.random.default_rng(3).normal(size=(6, 4, 4, 1)).astype(np.float32)
BATCH = Batch(IMAGES, np.array([0, 1, 2, 0, 1, 2], np.int32), np.ones(6, bool))
QUICK = FitSettings(steps=3, log_every=3, evaluate_every=3, checkpoint_every=3, progress=False)


@pytest.fixture(scope="module")
def teacher():
    apply, params, model_state = conv_net(6, 1)
    return d.Teacher(apply=apply, params=params, model_state=model_state)


def hint(student="Conv_0", teacher="Conv_0", **settings):
    return d.FeatureTerm(**{"loss": d.hints, "student": student, "teacher": teacher, "adapter": d.Linear(), **settings})


# ---------------------------------------------------------------------------------------------------- taps and adapters


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


# --------------------------------------------------------------------------------------------------------- the teacher


def test_no_gradient_reaches_the_teacher(teacher):
    def loss(images):
        return jnp.sum(d.teach(teacher, ("Conv_0",))(images).features["Conv_0"][0])

    assert not np.asarray(jax.grad(loss)(IMAGES)).any()
    settings = d.Distill(terms=(d.LogitTerm(),))
    apply, params, model_state = conv_net(2, 0)

    def of_answers(logits):
        batch = d.TaughtBatch(*BATCH, d.Outputs(logits, {}))
        trained = {"student": params, "adapters": {}}
        return d.distillation_loss(apply, settings)(trained, {"student": model_state}, batch, jax.random.key(0))[0]

    assert not np.asarray(jax.grad(of_answers)(jnp.ones((6, 3)))).any()


def test_a_teacher_of_packed_leaves_and_one_in_bfloat16():
    apply, params = dense_net((12, 8), 0, inputs=16)
    images = IMAGES.reshape(6, -1)
    for transform in (fake_quant(bits=8), low_rank(4)):
        masters, state = transform.init(params)
        seen = d.Teacher(apply=apply, params=transform.view(masters, state))
        small = d.Teacher(apply=apply, params=pack(transform, masters, state))
        assert any(is_packed(leaf) for leaf in jax.tree.leaves(small.params, is_leaf=is_packed))
        expected, found = (d.teach(one, ("Dense_0",))(images) for one in (seen, small))
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.features["Dense_0"][0], expected.features["Dense_0"][0], rtol=1e-4, atol=1e-5)
    full, half = (
        d.teach(d.Teacher(apply=apply, params=params, dtype=dtype))(images).logits for dtype in ("float32", "bfloat16")
    )
    assert (full.dtype, half.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=0.05, atol=0.05)
    assert not np.array_equal(half.astype(jnp.float32), full)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_ensembles(temperature):
    members = list(np.random.default_rng(4).normal(size=(3, 4, 5)).astype(np.float32))
    teaches = [lambda images, z=z: d.Outputs(jnp.asarray(z), {}) for z in members]
    found = d.ensemble(teaches, temperature=temperature)(IMAGES).logits
    probabilities = [np.exp(z.astype(np.float64) / temperature) for z in members]
    expected = np.mean([p / p.sum(1, keepdims=True) for p in probabilities], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(found / temperature), expected, rtol=1e-5)
    found = d.ensemble(teaches, average="logits")(IMAGES).logits
    np.testing.assert_allclose(found, np.mean(members, axis=0), rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture(scope="module")
def cached(teacher, tmp_path_factory):
    split = Split(
        images=np.random.default_rng(5).normal(size=(11, 4, 4, 1)).astype(np.float32), labels=np.arange(11, dtype=np.int32) % 3
    )
    folder = tmp_path_factory.mktemp("cache") / "deep" / "teacher"
    options = {"taps": ("Conv_*", "Dense_0"), "batch_size": 4, "progress": False}
    return split, folder, options, d.cache_outputs(teacher, split, folder, **options)


def test_the_cache_holds_what_the_teacher_gives(teacher, cached):
    split, folder, options, outputs = cached
    expected = d.teach(teacher, options["taps"])(split.images)
    assert isinstance(outputs.logits, np.memmap)
    assert list(outputs.features) == ["Conv_*", "Dense_0"]
    for found, wanted in zip(jax.tree.leaves(tuple(outputs)), jax.tree.leaves(tuple(expected)), strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert [path.name for path in folder.parent.iterdir()] == ["teacher"]  # nothing half-written is left

    # Read again, it is the same bytes; the batches are those of ordinary training, with the teacher's rows.
    again = d.cache_outputs(teacher, split, folder, **options)
    assert again.logits.tobytes() == outputs.logits.tobytes()
    plain, with_teacher = batches(split, 4, seed=5, start_step=1), d.cached_batches(split, again, 4, seed=5, start_step=1)
    for _ in range(3):
        batch, taught = next(plain), next(with_teacher)
        for a, b in zip(batch, taught):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(taught.teacher.logits, d.teach(teacher)(batch.images).logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="9 examples but outputs of 11"):
        d.cached_batches(split.take(np.arange(9)), again, 4, seed=0)


def test_a_stale_or_damaged_cache_is_refused(teacher, cached, tmp_path):
    split, folder, options, _ = cached
    params = jax.tree.map(lambda x: x, teacher.params)
    params["Dense_0"] = {**params["Dense_0"], "bias": params["Dense_0"]["bias"].at[0].add(1e-6)}
    change = lambda **kw: d.Teacher(**{**vars(teacher), **kw})  # noqa: E731
    moved = Split(images=split.images[::-1].copy(), labels=split.labels)
    for wanted, message in [
        ((change(params=params), split, options), "stale(.|\n)*teacher's weights changed: params/Dense_0/bias$"),
        ((teacher, moved, options), r"stale(.|\n)*the images changed: cached float32\[11,4,4,1\] .*, now float32\[11,4,4,1\]"),
        ((teacher, split, {**options, "taps": ("Dense_0",)}), r"the taps changed: cached \['Conv_\*', 'Dense_0'\], now"),
        ((change(dtype="bfloat16"), split, options), "the teacher's precision changed: cached float32, now bfloat16"),
        (
            (change(apply=lambda *a, **k: (lambda y: (y[0] * 1.1, y[1]))(teacher.apply(*a, **k))), split, options),
            "stale(.|\n)*gives other logits. Its function changed",
        ),
    ]:
        one, data, settings = wanted
        with pytest.raises(ValueError, match=message):
            d.cache_outputs(one, data, folder, **settings)

    apply, params = dense_net((3,), 0, inputs=16)
    small, where = d.Teacher(apply=apply, params=params, dtype="bfloat16"), tmp_path / "small"
    assert d.cache_outputs(small, split, where, progress=False).logits.dtype == np.float32  # bfloat16, exactly
    (where / "logits.npy").write_bytes((where / "logits.npy").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"is damaged: .*Delete it"):
        d.cache_outputs(small, split, where, progress=False)
    (where / "logits.npy").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        d.cache_outputs(small, split, where, progress=False)
    (where / "about.json").write_text("{")
    with pytest.raises(ValueError, match="is no cache of outputs"):
        d.cache_outputs(small, split, where, progress=False)
    (where / "about.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(ValueError, match="format version 0, needed 1"):
        d.cache_outputs(small, split, where, progress=False)


def test_an_interrupted_cache_leaves_nothing(teacher, tmp_path):
    split = Split(images=np.zeros((4, 4, 4, 1), np.float32), labels=np.zeros(4, np.int32))
    odd = d.Teacher(**{**vars(teacher), "apply": lambda *a, **k: (teacher.apply(*a, **k)[0].sum(0), {})})
    with pytest.raises(ValueError, match=r"logits must have one row an example, 4; got shape \(3,\)"):
        d.cache_outputs(odd, split, tmp_path / "cache", batch_size=4, progress=False)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- ways of training


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
    for kernel in kernels:
        assert len(np.unique(np.asarray(kernel))) <= 16
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
