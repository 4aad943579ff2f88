"""The networks of the applications: what they read, what they leave out in training, and what they do not read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.models import ChestNet, ImageAndSound, ImageAndText, TwoTowers, WindowAutoencoder

RNG = np.random.default_rng(3)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def tokens(*shape, below):
    return jnp.asarray(RNG.integers(0, below, shape), jnp.float32)


CASES = {
    "chest": (ChestNet(features=(4, 5)), lambda n: drawn(n, 9, 9, 1), 2),
    "windows": (WindowAutoencoder(points=6, hidden=5, code=2), lambda n: drawn(n, 7, 1, 1), 6),
    "sound": (ImageAndSound(features=(3, 4), width=5), lambda n: drawn(n, 44, 32, 1), 10),
    "text": (
        ImageAndText(vocabulary=9, classes=3, pixels=8, features=(3, 4), width=4),
        lambda n: jnp.concatenate([drawn(n, 192, 1, 1), tokens(n, 5, 1, 1, below=9)], axis=1),
        11,
    ),
    "towers": (TwoTowers(products=7, basket=2, width=4), lambda n: tokens(n, 5, 1, 1, below=8), 7),
}


@pytest.mark.parametrize("name", CASES)
def test_each_example_is_answered_alone(name):
    model, draw, width = CASES[name]
    x = draw(3)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    apply = jax.jit(model.apply)
    whole = apply(variables, x)
    assert (whole.shape, whole.dtype) == ((3, width), jnp.float32)
    np.testing.assert_allclose(whole[2:], apply(variables, x[2:]), rtol=1e-4, atol=1e-5)


def test_exposure_changes_nothing_of_an_x_ray():
    model, draw, _ = CASES["chest"]
    x = draw(2)
    variables = model.init(jax.random.key(0), x)
    np.testing.assert_allclose(model.apply(variables, x), model.apply(variables, 3 * x + 5), atol=0.02)


def test_the_number_of_a_series_is_not_read():
    model, draw, _ = CASES["windows"]
    x = draw(2)
    variables = model.init(jax.random.key(0), x)
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x.at[:, 6].set(9.0)))


def test_vectors_of_images_and_texts_have_length_one():
    model, draw, _ = CASES["text"]
    x = draw(4)
    out = model.apply(model.init(jax.random.key(0), x), x)
    for part in (out[:, 3:7], out[:, 7:]):
        np.testing.assert_allclose(jnp.linalg.norm(part, axis=1), 1, atol=1e-3)
    other = jnp.concatenate([draw(4)[:, :192], x[:, 192:]], axis=1)
    moved = model.apply(model.init(jax.random.key(0), x), other)
    np.testing.assert_allclose(moved[:, 7:], out[:, 7:], atol=1e-6)
    assert not np.allclose(moved[:, 3:7], out[:, 3:7])


def test_scores_are_products_of_both_towers():
    model, _, _ = CASES["towers"]
    x = jnp.array([[3, 0, 1, 2, 0], [0, 0, 0, 0, 0]])
    variables = model.init(jax.random.key(0), x)
    p = jax.tree.map(np.asarray, variables["params"])
    table = p["bought"]["embedding"]
    ends = (table[3] @ p["basket"]["kernel"]) + (table[1] + table[2]) / 2 @ p["before"]["kernel"]
    got = model.apply(variables, x)
    np.testing.assert_allclose(got[0], ends @ p["products"]["kernel"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1], 0, atol=1e-6)


def test_training_leaves_images_and_sounds_out():
    model = ImageAndSound(left_out=0.3, noise=0.0)
    x = jnp.ones((400, 44, 32, 1))
    spoiled = model.apply({}, x, method=ImageAndSound._spoiled, rngs={"dropout": jax.random.key(0)})
    image, sound = (np.asarray(spoiled[:, 0, 0, 0] == 0), np.asarray(spoiled[:, 40, 0, 0] == 0))
    assert abs(image.mean() - 0.3) < 0.1
    assert abs(sound.mean() - 0.3) < 0.1
    assert not (image & sound).any()
