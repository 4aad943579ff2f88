"""Models of sentences against NumPy in float64; padding counts nowhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.models import BagOfEmbeddings, TextClassifier, as_tokens

TOKENS = np.array([[3, 5, 2, 0, 0], [4, 0, 0, 0, 0], [6, 1, 2, 3, 4]], np.int32)


def init(model, seed: int = 0):
    rng = np.random.default_rng(seed)
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), variables)


def f64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def test_a_bag_is_the_mean_of_its_words_and_two_layers():
    model = BagOfEmbeddings(vocabulary=7, classes=3, width=4, hidden=5)
    variables = init(model)
    p = f64(variables["params"])
    for tokens, got in zip(TOKENS, jax.jit(model.apply)(variables, TOKENS), strict=True):
        mean = p["words"]["embedding"][tokens[tokens > 0]].mean(axis=0)
        hidden = np.maximum(mean @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
        np.testing.assert_allclose(got, hidden @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-5, atol=1e-5)


def test_a_sentence_without_words_is_the_zero_vector():
    model = BagOfEmbeddings(vocabulary=7, width=4)
    variables = init(model)
    p = f64(variables["params"])
    expected = np.maximum(p["hidden"]["bias"], 0) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(model.apply(variables, np.zeros((1, 5), np.int32))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("model", [BagOfEmbeddings(vocabulary=7), TextClassifier(vocabulary=7, max_length=8, heads=2, width=8)])
def test_tokens_may_come_as_a_data_set_holds_them_and_padding_is_not_seen(model):
    variables = init(model)
    apply = jax.jit(model.apply)
    plain = apply(variables, TOKENS)
    np.testing.assert_array_equal(apply(variables, TOKENS.astype(np.float32)[..., None, None]), plain)
    longer = np.pad(TOKENS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(apply(variables, longer), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model", [BagOfEmbeddings(vocabulary=7, dropout=0.5), TextClassifier(vocabulary=7, heads=2, width=8, dropout=0.5)]
)
def test_values_are_left_out_in_training_alone(model):
    variables = init(model)
    outs = [model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert not np.allclose(outs[0], outs[2])
    np.testing.assert_array_equal(model.apply(variables, TOKENS), model.apply(variables, TOKENS, train=False))


def test_the_transformer_is_blocks_a_mean_and_a_head():
    model = TextClassifier(vocabulary=7, classes=3, depth=1, width=8, heads=2, mlp=12, max_length=5)
    variables = init(model)
    p = f64(variables["params"])

    def norm(x, scale):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale["scale"] + scale["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    block = p["Block_0"]
    for tokens, got in zip(TOKENS, jax.jit(model.apply)(variables, TOKENS), strict=True):
        words = tokens[tokens > 0]  # the padding left out, not masked
        x = p["words"]["embedding"][words] + p["places"]["embedding"][: len(words)]
        y = norm(x, block["LayerNorm_0"])
        q, k, v = (dense(y, block[name]).reshape(len(words), 2, 4) for name in ("query", "key", "value"))
        mixed = np.empty_like(v)
        for head in range(2):
            for i in range(len(words)):
                weights = np.exp(k[: i + 1, head] @ q[i, head] / 2)
                mixed[i, head] = weights @ v[: i + 1, head] / weights.sum()
        x = x + dense(mixed.reshape(len(words), 8), block["out"])
        up = dense(norm(x, block["LayerNorm_1"]), block["up"])
        x = x + dense(0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3))), block["down"])
        expected = dense(norm(x, p["LayerNorm_0"]).mean(axis=0), p["head"])
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_sentence_too_long_is_refused():
    with pytest.raises(ValueError, match="sentences may have 4 tokens; got 5"):
        jax.eval_shape(TextClassifier(vocabulary=7, max_length=4).init, jax.random.key(0), TOKENS)


def test_as_tokens_makes_integers():
    got = as_tokens(jnp.array([[6999.0, 0.0]]).reshape(1, 2, 1, 1))
    assert (got.dtype, got.tolist()) == (jnp.int32, [[6999, 0]])
