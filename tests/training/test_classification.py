"""The classifier's loss, the Linen adapter, and evaluation, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lepton_jax import Transform, identity
from lepton_jax.data import Batch, Split, eval_batches
from lepton_jax.training import classification_loss, create, cross_entropy, linen_apply, make_evaluate, make_train_step


class Normed(nn.Module):
    """A dense layer with batch norm and dropout."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x.reshape(x.shape[0], -1)))
        return nn.Dropout(0.5, deterministic=not train)(x)


def reference(logits, labels, smoothing):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.eye(logits.shape[-1])[labels] * (1 - smoothing) + smoothing / logits.shape[-1]
    return -(target * log_p).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cross_entropy(key, smoothing, dtype):
    logits = (jax.random.normal(key, (7, 5)) * 3).astype(dtype)
    labels = np.arange(7) % 5
    loss = cross_entropy(logits, jnp.array(labels), label_smoothing=smoothing)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference(logits, labels, smoothing), rtol=1e-5)


def test_loss_l2_and_error(key):
    kernel = jax.random.normal(key, (3, 4))
    params = {"kernel": kernel, "bias": jnp.ones(4)}
    batch = Batch(np.float32(np.eye(3)), np.array([0, 1, 2]), np.ones(3, bool))
    logits = np.asarray(kernel) + 1
    loss, (state, metrics) = classification_loss(linen_apply(nn.Dense(4)), l2=0.3)(params, {}, batch, key)
    expected = reference(logits, batch.labels, 0).mean() + 0.15 * (np.asarray(kernel, np.float64) ** 2).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], np.mean(logits.argmax(-1) != batch.labels))
    assert state == {}


def test_linen_apply_passes_train_and_moves_batch_statistics(key):
    module, x = Normed(), jax.random.normal(key, (6, 2, 3)) + 5
    variables = module.init(key, x, train=False)
    model_state = {"batch_stats": variables["batch_stats"]}
    apply = linen_apply(module)
    outputs, moved = apply(variables["params"], model_state, x, train=True, key=key)
    dense = np.asarray(x, np.float64).reshape(6, 6) @ np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(moved["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * dense.mean(0), rtol=1e-5, atol=1e-6)
    assert (np.asarray(outputs) == 0).any()  # dropout was on
    quiet, same = apply(variables["params"], model_state, x, train=False, key=None)
    assert same is model_state
    np.testing.assert_allclose(quiet, dense / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)


def test_batch_norm_trains(key):
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(8, 2, 3)).astype(np.float32), np.arange(8, dtype=np.int32) % 4, np.ones(8, bool))
    variables, tx = Normed().init(key, batch.images, train=False), optax.sgd(0.1)
    apply = linen_apply(Normed())
    state = create(variables["params"], {"batch_stats": variables["batch_stats"]}, tx, identity(), key)
    step = make_train_step(classification_loss(apply, label_smoothing=0.1), tx, identity())
    before = jax.tree.map(np.asarray, state.model_state)
    state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    assert jax.tree.structure(state.model_state) == jax.tree.structure(before)
    assert not np.array_equal(
        state.model_state["batch_stats"]["BatchNorm_0"]["mean"], before["batch_stats"]["BatchNorm_0"]["mean"]
    )


def test_evaluate_counts_no_padding_and_views_once():
    """7 examples in batches of 3; the view flips the kernel's sign, and is traced once over two evaluations."""
    rng = np.random.default_rng(2)
    split = Split(images=rng.normal(size=(7, 1, 4, 1)).astype(np.float32), labels=rng.integers(0, 3, 7).astype(np.int32))
    views = []

    def view(params, state):
        views.append(1)
        return {"kernel": -params["kernel"]}

    flip = Transform(lambda params: (params, ()), view, lambda params, state, grads, step: (params, state))

    def apply(params, model_state, images, *, train, key):
        assert not train
        return images.reshape(images.shape[0], -1) @ params["kernel"], model_state

    kernel = rng.normal(size=(4, 3)).astype(np.float32)
    evaluate = make_evaluate(apply, flip, eval_batches(split, 3))
    state = create({"kernel": jnp.array(kernel)}, {}, optax.sgd(0.1), flip, jax.random.key(0))
    figures = [evaluate(state), evaluate(state)]
    logits = split.images.reshape(7, 4) @ -kernel
    assert figures[0] == figures[1]
    assert figures[0]["error"] == np.mean(logits.argmax(-1) != split.labels)
    np.testing.assert_allclose(figures[0]["loss"], reference(logits, split.labels, 0).mean(), rtol=1e-5)
    assert len(views) == 1


def test_bad_settings():
    apply = linen_apply(nn.Dense(2))
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
        classification_loss(apply, label_smoothing=1.0)
    with pytest.raises(ValueError, match="l2 must be 0 or more; got -1"):
        classification_loss(apply, l2=-1.0)
    with pytest.raises(ValueError, match="no example to evaluate on"):
        make_evaluate(apply, identity(), [])
