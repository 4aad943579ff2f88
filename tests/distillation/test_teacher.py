"""Teachers, ensembles of them, and the cache of what they answer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_models import BATCH, IMAGES, conv_net, dense_net

from lepton_jax import distillation as d
from lepton_jax import fake_quant, low_rank, pack
from lepton_jax.core.packed import is_packed
from lepton_jax.data import Split, batches


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
