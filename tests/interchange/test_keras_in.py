"""Models of Keras: equal to Keras, read from its files, compressed, and set back."""

import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lepton
from lepton_jax.core import paths
from lepton_jax.interchange import from_keras, to_keras
from lepton_jax.pruning import channels

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
layers = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with numpy 2


@pytest.fixture(autouse=True)
def ranks():
    """Keras itself, where it is called beside ours, relies on what the tests of this package forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


def mlp():
    parts = [layers.Dense(24, activation="relu"), layers.Dropout(0.1), layers.Dense(12, activation="relu"), layers.Dense(5)]
    return keras.Sequential([layers.Input((20,)), *parts]), (4, 20)


def cnn():
    parts = [layers.Conv2D(8, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU()]
    parts += [layers.MaxPooling2D(), layers.DepthwiseConv2D(3), layers.Conv2D(12, 3), layers.BatchNormalization()]
    return keras.Sequential([layers.Input((12, 12, 3)), *parts, layers.GlobalAveragePooling2D(), layers.Dense(5)]), (
        2,
        12,
        12,
        3,
    )


def lstm():
    parts = [layers.Embedding(50, 8), layers.Bidirectional(layers.LSTM(6)), layers.Dense(3)]
    return keras.Sequential([layers.Input((7,), dtype="int32"), *parts]), (3, 7)


def skip():
    i = layers.Input((10, 10, 3))
    x = layers.Conv2D(8, 3, padding="same")(i)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.BatchNormalization()(x))
    z = layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1)(x)])
    return keras.Model(i, layers.Dense(4)(layers.GlobalAveragePooling2D()(z))), (2, 10, 10, 3)


def attention():
    i = layers.Input((9,), dtype="int32")
    x = layers.Embedding(50, 16)(i)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    x = layers.Add()([layers.Dense(16, activation="gelu")(x), x])
    return keras.Model(i, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), (3, 9)


def mobilenet():
    return keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=10, alpha=0.25), (2, 32, 32, 3)


MODELS = [mlp, cnn, lstm, skip, attention, mobilenet]


def made(build):
    """A model whose variables are all drawn, statistics too, and an input."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model, shape = build()
    for variable in model.weights:
        if "variance" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "mean" in variable.path or "beta" in variable.path or "bias" in variable.path:
            variable.assign(0.1 * rng.standard_normal(variable.shape))
    x = rng.standard_normal(shape).astype(np.float32)
    return model, jnp.asarray(rng.integers(0, 50, shape), jnp.int32) if build in (lstm, attention) else jnp.asarray(x)


def change(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


@pytest.mark.parametrize("build", MODELS)
def test_it_is_equal_planned_tuned_quantized_and_set_back(build, tmp_path: Path):
    keras_model, x = made(build)
    wanted = np.asarray(keras_model(x, training=False))
    model = from_keras(keras_model)
    got = np.asarray(model(x))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * max(np.abs(wanted).max(), 1))
    assert {f"params/{v.path}" for v in keras_model.trainable_variables} <= set(paths.flatten(model.variables))

    plan = channels.plan(model.apply, model.variables, x, fraction=0.25)
    channels.verify(plan, model.apply, model.variables, x)
    small = plan.shrink(model.variables)
    assert sum(a.size for a in jax.tree.leaves(small)) < sum(a.size for a in jax.tree.leaves(model.variables))
    with pytest.raises(ValueError, match="A shrunk one cannot be set back"):
        to_keras(lepton.Model(plan.rewrite(model.apply), small, (x,)), keras_model)
    np.testing.assert_array_equal(keras_model(x, training=False), wanted)

    tuned, loss = tuning(model, x, wanted)
    assert loss[-1] < loss[0]
    packed = lepton.quantize_model(tuned, 8)
    packed.save(tmp_path / "m.lepton", x)
    np.testing.assert_array_equal(lepton.load_model(tmp_path / "m.lepton")(x), packed(x))
    assert change(packed(x), tuned(x)) < 0.05
    to_keras(packed, keras_model)
    np.testing.assert_allclose(keras_model(x, training=False), packed(x), rtol=0, atol=1e-5)


def tuning(model: lepton.Model, x, wanted):
    """A few steps at half of the weights, towards the outputs of before."""
    state = {name: part for name, part in model.variables.items() if name != "params"}
    transform = lepton.prune(0.5)
    params, tstate = transform.init(model.variables["params"])
    tx = optax.adam(3e-3)
    moments = tx.init(params)

    @jax.jit
    def step(params, tstate, moments, number):
        def loss_of(params):
            return jnp.mean((model.apply({"params": transform.view(params, tstate), **state}, x) - wanted) ** 2)

        loss, slopes = jax.value_and_grad(loss_of)(params)
        updates, moments = tx.update(slopes, moments, params)
        params, tstate = transform.update(optax.apply_updates(params, updates), tstate, slopes, number)
        return params, tstate, moments, loss

    losses = []
    for number in range(12):
        params, tstate, moments, loss = step(params, tstate, moments, number)
        losses.append(float(loss))
    return lepton.Model(model.apply, {"params": transform.view(params, tstate), **state}, (x,)), losses


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("build", [cnn, attention])
@pytest.mark.filterwarnings("ignore:You are saving")
def test_files_give_the_model(build, suffix: str, tmp_path: Path):
    keras_model, x = made(build)
    keras_model.save(tmp_path / f"m{suffix}")
    np.testing.assert_allclose(lepton.load_model(tmp_path / f"m{suffix}")(x), keras_model(x, training=False), rtol=0, atol=1e-6)


def test_several_inputs_and_outputs_and_frozen_layers():
    a, b = layers.Input((3,), name="a"), layers.Input((4,), name="b")
    frozen = layers.Dense(5, name="frozen", trainable=False)
    y, z = frozen(a), layers.Dense(5, name="free")(b)
    x = (jnp.ones((2, 3)), 2 * jnp.ones((2, 4)))
    for inputs, given in (([a, b], list(x)), ({"b": b, "a": a}, {"a": x[0], "b": x[1]})):
        keras_model = keras.Model(inputs, [y + z, y])
        model = from_keras(keras_model)
        order = [x[0] if one.shape[-1] == 3 else x[1] for one in model.example]
        for got, wanted in zip(model(*order), keras_model(given)):
            np.testing.assert_allclose(got, wanted, atol=1e-6)
        assert set(paths.flatten(model.variables)) == {
            "params/free/kernel",
            "params/free/bias",
            "state/frozen/kernel",
            "state/frozen/bias",
        }


def test_names_that_come_twice_are_numbered():
    one, two = layers.Dense(3, name="same"), layers.Dense(3, name="same")

    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = one, two

        def call(self, x):
            return self.two(self.one(x))

    keras_model, x = Twice(), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="build it"):
        from_keras(keras_model)
    wanted = keras_model(x)
    with pytest.raises(ValueError, match="give examples"):
        from_keras(keras_model)
    model = from_keras(keras_model, x)
    assert len(jax.tree.leaves(model.variables)) == 4
    np.testing.assert_allclose(model(x), wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:You are saving")
def test_files_that_are_no_whole_model(tmp_path: Path):
    keras_model, _ = made(mlp)
    keras_model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(lepton.ArtifactError, match="weights and no architecture"):
        lepton.load_model(tmp_path / "m.weights.h5")
    keras_model.save(tmp_path / "m.keras")
    data = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "short.keras").write_bytes(data[: len(data) // 2])
    with pytest.raises(lepton.ArtifactError, match=r"short.keras: Keras cannot read it"):
        lepton.load_model(tmp_path / "short.keras")
    (tmp_path / "noise.h5").write_bytes(b"noise" * 100)
    with pytest.raises(lepton.ArtifactError, match=r"noise.h5"):
        lepton.load_model(tmp_path / "noise.h5")
    with zipfile.ZipFile(tmp_path / "m.keras") as old, zipfile.ZipFile(tmp_path / "huge.keras", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"units": 24', b'"units": 1000000000'))
    with pytest.raises(lepton.ArtifactError, match="cannot hold a layer"):
        lepton.load_model(tmp_path / "huge.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving")
def test_code_that_a_file_brings_along_is_not_run(suffix: str, tmp_path: Path):
    keras_model = keras.Sequential([layers.Input((3,)), layers.Lambda(lambda x: x + 1), layers.Dense(2)])
    keras_model.save(tmp_path / f"m{suffix}")
    with pytest.raises(lepton.ArtifactError, match=r"(?i)lambda"):
        lepton.load_model(tmp_path / f"m{suffix}")
