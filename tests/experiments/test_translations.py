"""Translations are judged in any order alike, the loss is of words alone, and the config is whole."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common import cli
from experiments.common.config import load_config
from experiments.common.objectives import Translations
from experiments.common.objectives.translations import bleu, in_batches
from experiments.common.sources import Tatoeba
from experiments.studies.applications import Applications
from lepton_jax import identity
from lepton_jax.data import Batch, Split
from lepton_jax.models import Translator
from lepton_jax.training import create, linen_apply, make_train_step

RNG = np.random.default_rng(2)


@pytest.fixture
def folder(tmp_path):
    lines = ["one two\teins zwei", "two one\tzwei eins", "one\teins", "two\tzwei", "one one\teins eins", "two two\tzwei zwei"]
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return tmp_path


def test_sentences_are_taken_by_length_and_given_back_in_order():
    source = np.zeros((11, 20), np.int32)
    for row in source:
        row[: RNG.integers(1, 20)] = RNG.integers(4, 9)
    widths = []

    def translate(some):
        widths.append(some.shape)
        return np.stack([some.sum(1), some[:, 0]], axis=1)

    made = in_batches(translate, source, 4)
    np.testing.assert_array_equal(np.array(made), np.stack([source.sum(1), source[:, 0]], axis=1))
    assert {rows for rows, _ in widths} == {4}
    assert {width for _, width in widths} <= {8, 16, 20}
    assert sorted(width for _, width in widths) == [width for _, width in widths]


def test_padding_costs_nothing():
    objective = Translations(folder=".", tokens=9, smoothing=0.0)
    outputs = RNG.normal(size=(2, 3, 9))
    images = np.array([[5, 3, 0, 6, 3, 0], [5, 6, 3, 7, 8, 3]], np.float32).reshape(2, 6, 1, 1)
    batch = Split(images=images, labels=np.zeros(2, np.int32))
    apply = lambda p, s, x, **_: (jnp.asarray(outputs, jnp.float32), s)  # noqa: E731
    loss, _ = objective.loss(apply, 0.0)({}, {}, batch, None)
    logs = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    wanted = [(0, 0, 6), (0, 1, 3), (1, 0, 7), (1, 1, 8), (1, 2, 3)]
    np.testing.assert_allclose(loss, -np.mean([logs[place] for place in wanted]), rtol=1e-5)


def test_a_small_translator_learns_six_sentences(folder):
    data = Tatoeba(folder=folder, tokens=30).load()
    objective = Translations(folder=folder, tokens=30, smoothing=0.0)
    model = Translator(vocabulary=30, encoder=1, decoder=1, width=16, heads=2, mlp=16, dropout=0.0, beams=2, longest=4)
    task_apply = linen_apply(model)
    params = jax.jit(model.init)(jax.random.key(0), jnp.asarray(data.train.images))["params"]
    tx = optax.adam(1e-2)
    state = create(params, {}, tx, identity(), jax.random.key(1))
    step = make_train_step(objective.loss(task_apply, 0.0), tx, identity())
    judge = objective.judge(task_apply, data.test)
    assert judge(state)["error"] > 0.5
    given = Batch(images=jnp.asarray(data.train.images), labels=jnp.asarray(data.train.labels), mask=jnp.ones(6))
    for _ in range(120):
        state, _ = step(state, given)
    # BLEU of texts under four words is small though all are right; it is the best that can be had.
    texts = ["eins zwei", "zwei eins", "eins", "zwei", "eins eins", "zwei zwei"]
    assert judge(state)["error"] == pytest.approx(1 - bleu(texts, texts) / 100)


def test_the_config_is_whole():
    made = load_config(cli.ROOT / "configs" / "applications_translation.py", Applications)
    task = made.tasks[0]
    assert (made.name, task.objective.metric, task.model.vocabulary) == ("applications_translation", "bleu", made.data.tokens)
    assert task.objective.figure(0.7) == pytest.approx(30)
