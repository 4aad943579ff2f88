"""The beam search against trying every text, and a translator: token by token as all at once, whole as cut."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.models import Source, Translator, attend_to, beam_search
from lepton_jax.pruning import channels

RNG = np.random.default_rng(4)
END = 3


def by_trying(table, steps, power):
    """The best text of all, its probabilities from ``table[number, last token]``, float64."""
    logs = table - np.log(np.sum(np.exp(table), axis=-1, keepdims=True))
    size, best = table.shape[-1], (-np.inf, ())
    for length in range(1, steps + 1):
        for text in itertools.product(range(1, size), repeat=length):
            if END in text[:-1] or (length < steps and text[-1] != END):
                continue
            steps_of = zip(itertools.count(), (1, *text), text)
            score = sum(logs[number, last, token] for number, last, token in steps_of) / ((5 + length) / 6) ** power
            best = max(best, (score, text))
    return [*best[1], *[0] * (steps - len(best[1]))]


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_text_of_all(power):
    table = RNG.normal(size=(3, 4, 5, 5)) * 2  # three searches, four steps
    table[..., 0] = -30  # padding is no word

    def step(tokens, cache, number):
        return jnp.asarray(table, jnp.float32)[cache[0].reshape(3, -1), number, tokens], cache

    beams = 5**3
    cache = (jnp.repeat(jnp.arange(3), beams),)
    found = beam_search(step, cache, batch=3, begin=1, end=END, steps=4, beams=beams, power=power)
    assert found.dtype == jnp.int32
    assert found.tolist() == [by_trying(some, 4, power) for some in table]


def test_what_is_kept_goes_with_its_text():
    """The logits are of all tokens so far, which only a cache in the right order knows."""
    weights = RNG.normal(size=(5, 6, 6))

    def step(tokens, cache, number):
        seen = cache.at[:, number].set(tokens.reshape(-1))
        logits = sum(jnp.asarray(weights, jnp.float32)[at, seen[:, at]] * (at <= number) for at in range(5))
        return logits.reshape(*tokens.shape, 6), seen

    found = beam_search(step, jnp.zeros((2 * 40, 5), jnp.int32), batch=2, begin=1, end=END, steps=3, beams=40, power=0.0)
    best = (-np.inf, None)
    for length in (1, 2, 3):
        for text in itertools.product(range(1, 6), repeat=length):
            if END in text[:-1] or (length < 3 and text[-1] != END):
                continue
            score, before = 0.0, (1, *text)
            for number, token in enumerate(text):
                logits = sum(weights[at, before[at]] for at in range(number + 1))
                score += logits[token] - np.log(np.exp(logits).sum())
            best = max(best, (score, text))
    assert found[0, : len(best[1])].tolist() == list(best[1])
    assert found[1].tolist() == found[0].tolist()


def test_attention_where_words_are():
    q, k, v = (RNG.normal(size=(2, length, 2, 3)) for length in (4, 5, 5))
    there = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], bool)
    scores = np.where(there[:, None, None], np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(3), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    got = attend_to(*(jnp.asarray(part, jnp.float32) for part in (q, k, v)), jnp.asarray(there))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def net():
    model = Translator(vocabulary=13, encoder=1, decoder=2, width=8, heads=2, mlp=12, beams=1, longest=2)
    pairs = jnp.asarray(RNG.integers(4, 13, (3, 10)))
    variables = jax.jit(model.init)(jax.random.key(0), pairs)
    return model, jax.tree.map(lambda leaf: leaf + jnp.asarray(RNG.normal(size=leaf.shape) / 2, leaf.dtype), variables)


def test_said_one_by_one_is_said_at_once(net):
    """With one beam each token is the likeliest after those before, by the logits of all at once."""
    model, variables = net
    source = jnp.asarray(RNG.integers(4, 13, (3, 5))).at[1, 3:].set(0)
    said = jax.jit(model.apply)(variables, Source(source))
    assert (said.shape, said.dtype) == ((3, 7), jnp.int32)
    wide = jnp.pad(source, ((0, 0), (0, 2)))
    logits = np.array(model.apply(variables, jnp.concatenate([wide, said], axis=1)))
    logits[..., 0] = -np.inf
    for row, tokens in zip(logits.argmax(-1), said.tolist()):
        length = tokens.index(END) + 1 if END in tokens else len(tokens)
        assert row[:length].tolist() == tokens[:length]
        assert set(tokens[length:]) <= {0}


def test_neither_padding_nor_what_comes_later_is_read(net):
    model, variables = net
    pairs = jnp.asarray(RNG.integers(4, 13, (2, 10))).at[:, 3:5].set(0)
    logits = model.apply(variables, pairs)
    later = model.apply(variables, pairs.at[:, 8:].set(9))
    np.testing.assert_allclose(later[:, :4], logits[:, :4], rtol=1e-5, atol=1e-5)
    assert not np.allclose(later[:, 4], logits[:, 4])
    short = model.apply(variables, jnp.concatenate([pairs[:, :3], pairs[:, 5:8]], axis=1))
    np.testing.assert_allclose(short, logits[:, :3], rtol=1e-5, atol=1e-5)


def test_a_cut_translator_translates_as_the_masked_one(net):
    model, variables = net
    pairs = jnp.asarray(RNG.integers(4, 13, (2, 10)))
    made = channels.plan(lambda v, x: model.apply(v, x), variables, pairs, fraction=0.3, of="parameters")
    small = made.shrink(variables)
    assert small["params"]["words"]["embedding"].shape[1] < 8
    source = Source(pairs[:, :5])
    got = jax.jit(made.rewrite(lambda v, x: model.apply(v, x)))(small, source)
    np.testing.assert_array_equal(got, model.apply(made.mask(variables), source))
