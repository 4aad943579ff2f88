"""Training through the values that an engine has in eight bits: what was trained is what the engine gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from lepton_jax import Model, deploy
from lepton_jax.data import load_digits
from lepton_jax.deploy.training import rounded_weight
from lepton_jax.deploy.weights import in_codes
from lepton_jax.formats import Uniform
from lepton_jax.graph.trace import trace
from lepton_jax.quantization import fake_quant, quantize


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(nn.relu(x).reshape(x.shape[0], -1))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.relu(x + nn.Conv(6, (3, 3))(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(64, 24, rngs=rngs), nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x.reshape(x.shape[0], -1))))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(24)(nn.relu(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(24)(x.reshape(x.shape[0], -1))
        x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)
        return nn.Dense(10)(x)


def plain(v, x):
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ v["a"]) @ v["b"]


def digits(count):
    data = load_digits()
    return jnp.asarray(data.train.images[:count]), jnp.asarray(data.train.labels[:count])


def models():
    x, _ = digits(1)
    key = jax.random.key(3)
    found = {}
    for name, net in {"linen": Small(), "scanned": Scanned(), "residual": Residual()}.items():
        found[name] = Model(net.apply, net.init(key, x), (x,))
    found["plain"] = Model(plain, {"a": jax.random.normal(key, (64, 20)) / 8, "b": jax.random.normal(key, (20, 10)) / 4}, (x,))
    found["nnx"] = Model.from_nnx(Net(nnx.Rngs(3)), x)
    return found


MODELS = models()


def loss_of(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def step_of(placed):
    """One step of training through the engine's roundings."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(variables, state, x, labels):
        loss, grads = jax.value_and_grad(lambda v: loss_of(placed.apply(v, x), labels))(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, loss

    return optimizer, step


@pytest.mark.parametrize("name", MODELS)
def test_what_was_trained_is_what_the_engine_gives(name, tmp_path):
    x, labels = digits(256)
    placed = deploy.place(MODELS[name], [x])
    optimizer, step = step_of(placed)
    variables, state = placed.variables, optimizer.init(placed.variables)
    for number in range(50):
        at = 64 * (number % 4)
        variables, state, _ = step(variables, state, x[at : at + 64], labels[at : at + 64])
    assert step._cache_size() == 1
    tuned = placed.tuned(variables)
    before, after = (loss_of(one.simulate(x), labels) for one in (placed, tuned))
    assert after < 0.9 * before
    trained, simulated = jax.jit(placed.apply)(variables, x), tuned.simulate(x)
    # Where float32's rounding moves a code it is by a step.
    assert np.mean(np.abs(trained - simulated)) < 1e-3 * np.abs(simulated).max()
    assert abs(loss_of(trained, labels) - after) < 1e-3 * after
    tuned.save(tmp_path / "tuned.onnx")
    assert deploy.verify(tmp_path / "tuned.onnx", tuned, x).equal


def test_gradients_are_near_those_of_the_model():
    x, labels = digits(128)
    model = MODELS["linen"]
    placed = deploy.place(model, [x])
    grads = jax.grad(lambda v: loss_of(placed.apply(v, x), labels))(placed.variables)
    exact = jax.grad(lambda v: loss_of(placed.model.apply(v, x), labels))(placed.variables)
    checked = 0
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        if np.abs(wanted).max() > 0:
            cosine = np.vdot(got, wanted) / (np.linalg.norm(got) * np.linalg.norm(wanted))
            assert cosine > 0.97
            checked += 1
    assert checked >= 6


def test_weights_of_four_bits_are_trained_and_kept(tmp_path):
    x, labels = digits(256)
    placed = deploy.place(MODELS["linen"], [x])
    four = fake_quant(Uniform(4))
    masters, kept = four.init(placed.variables)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(masters)

    def loss(masters):
        return loss_of(placed.apply(four.view(masters, kept), x), labels)

    @jax.jit
    def step(masters, state):
        updates, state = optimizer.update(jax.grad(loss)(masters), state)
        return optax.apply_updates(masters, updates), state

    before = loss_of(placed.tuned(four.view(masters, kept)).simulate(x), labels)
    for _ in range(30):
        masters, state = step(masters, state)
    seen = four.view(masters, kept)
    tuned = placed.tuned(seen)
    after = loss_of(tuned.simulate(x), labels)
    assert after < 0.7 * before
    assert abs(loss(masters) - after) < 2e-3 * after
    tuned.save(tmp_path / "four.onnx")
    assert deploy.verify(tmp_path / "four.onnx", tuned, x).equal


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("largest", [127, 63])
def test_weights_are_rounded_as_in_the_file(bits, largest):
    weight = np.random.default_rng(bits).normal(size=(40, 9)).astype(np.float32)
    weight[:, 3] = 0
    if bits < 8:
        weight = np.asarray(quantize(weight, Uniform(bits, channel_axis=1)).unpack())
    [eqn] = trace(lambda w, x: x @ w, weight, np.ones((2, 40), np.float32)).equations()
    wanted = in_codes(eqn, weight, largest).rounded()
    np.testing.assert_allclose(rounded_weight(jnp.asarray(weight), (1,), largest), wanted, rtol=2e-6, atol=0)


def test_values_beyond_the_range_have_no_derivative():
    placed = deploy.place(Model(lambda v, x: x @ v, jnp.eye(2)), [jnp.array([[0.0, 255.0]])])
    grad = jax.vmap(jax.grad(lambda x: placed.apply(placed.variables, x[None]).sum()))
    np.testing.assert_array_equal(grad(jnp.array([[3.4, 300.0], [-1.0, 4.0]])), [[1.0, 0.0], [0.0, 1.0]])


def test_other_variables_are_refused():
    placed = deploy.place(MODELS["plain"], [digits(8)[0]])
    with pytest.raises(ValueError, match=r"must be like .variables; these are not: b: float32\[10, 10\]"):
        placed.tuned({**placed.variables, "b": jnp.ones((10, 10))})
    with pytest.raises(ValueError, match="must be finite; these are not: b"):
        placed.tuned({**placed.variables, "b": jnp.full((20, 10), jnp.nan)})
