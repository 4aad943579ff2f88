"""A model, data and a limit, from Python and from a shell."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import Model, account, load_model, unpack
from lepton_jax.command_line.main import main
from lepton_jax.data import load_digits
from lepton_jax.tuning import Bits, Choice, Recipe, tune
from lepton_jax.tuning.allocate import recipe_of
from lepton_jax.tuning.outputs import Outputs


def net(variables, x):
    hidden = jax.nn.relu(x @ variables["first"] + variables["bias"][None])
    return hidden @ variables["second"]


@pytest.fixture(scope="module")
def trained():
    """A perceptron on digits, and images that it has not seen."""
    digits = load_digits()
    images = jnp.asarray(digits.train.images.reshape(len(digits.train.images), -1))
    keys = jax.random.split(jax.random.key(0))
    variables = {
        "first": jax.random.normal(keys[0], (64, 48)) / 8,
        "bias": jnp.zeros(48),
        "second": jax.random.normal(keys[1], (48, 10)) / 7,
    }
    tx = optax.adam(5e-3)

    @jax.jit
    def train(variables):
        def step(carry, _):
            variables, state = carry
            loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(net(v, images), digits.train.labels).mean()  # noqa: E731
            updates, state = tx.update(jax.grad(loss)(variables), state)
            return (optax.apply_updates(variables, updates), state), None

        return jax.lax.scan(step, (variables, tx.init(variables)), None, 150)[0][0]

    test = digits.test
    return train(variables), images[:256], jnp.asarray(test.images.reshape(len(test.images), -1)), np.asarray(test.labels)


def changed(variables, other, x) -> float:
    return float(np.mean(np.argmax(net(variables, x), -1) != np.argmax(net(unpack(other), x), -1)))


def test_a_budget_of_bytes_is_kept_and_beats_uniform_bits(trained, tmp_path):
    variables, x, seen, labels = trained
    found = tune(net, variables, [x], bytes="1.5kB", options=[Bits(2, 3, 4, 8)], evaluations=20, progress=False)
    Model(net, found.variables, (x[:1],)).save(tmp_path / "m.lepton")
    assert sum(tensor.total for tensor in account(tmp_path / "m.lepton").tensors) == found.recipe.bytes <= 1500
    uniform = [
        tune(net, variables, [x], bytes=10**6, options=[Bits(bits)], evaluations=0, progress=False).table for bits in (2, 3)
    ]
    outputs = Outputs(net, variables, [(x,)], "kl")
    for table, bits in zip(uniform, (2, 3)):
        recipe = recipe_of(table, dict.fromkeys(table.cells, Choice(bits=bits)))
        if recipe.bytes <= 1500:
            transform = recipe.transform()
            assert found.recipe.measured <= outputs.of(transform.view(*transform.init(variables)))
    assert found.changed == pytest.approx(changed(variables, found.variables, x))
    accuracy = [np.mean(np.argmax(net(v, seen), -1) == labels) for v in (variables, unpack(found.variables))]
    assert accuracy[1] > accuracy[0] - 0.05


@pytest.mark.parametrize("loss", ["1%", 0.02])
def test_a_limit_of_the_loss_is_kept_by_what_is_measured(trained, loss):
    variables, x, *_ = trained
    found = tune(net, variables, [x], loss=loss, options=[Bits(2, 3, 4, 8)], evaluations=10, progress=False)
    assert found.recipe.bytes < 0.25 * 4 * sum(leaf.size for leaf in variables.values())
    if loss == "1%":
        assert found.changed == changed(variables, found.variables, x) <= 0.01
    else:
        assert found.recipe.measured <= 0.02
        assert found.recipe.measured == pytest.approx(
            Outputs(net, variables, [(x,)], "kl").of(unpack(found.variables)), rel=1e-4
        )


def test_limits_that_cannot_be_kept_together_say_what_can(trained):
    variables, x, *_ = trained
    small = {"options": [Bits(2, 8)], "evaluations": 0, "progress": False}
    with pytest.raises(ValueError, match=r"loses .* %, more than loss=0.1 %; bytes=[\d,]+ would do"):
        tune(net, variables, [x], bytes="1.1kB", loss="0.1%", **small)
    for wrong in ("0.5", "-1%", "all", 0.0, -1.0):
        with pytest.raises(ValueError, match="tune: loss must be"):
            tune(net, variables, [x], loss=wrong, **small)
    with pytest.raises(ValueError, match="give at least one limit"):
        tune(net, variables, [x], **small)


def test_a_model_tunes_itself(trained):
    variables, x, *_ = trained
    model = Model(net, variables, (x[:1],)).tune([x], bytes="3kB", progress=False)
    assert any("bits" in step.text for step in model.applied)
    assert changed(variables, model.variables, x) < 0.05


def test_from_a_shell(trained, tmp_path, capsys):
    variables, x, *_ = trained
    Model(net, variables, (x[:1],)).save(tmp_path / "model.lepton")
    np.save(tmp_path / "x.npy", np.asarray(x))
    words = ["tune", str(tmp_path / "model.lepton"), "--data", str(tmp_path / "x.npy"), "--bytes", "2kB"]
    picture, recipe = tmp_path / "layers.png", tmp_path / "recipe.json"
    assert main([*words, "--picture", str(picture), "--recipe", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "answers on the batches changed" in said
    assert picture.stat().st_size > 5000
    tensors = sum(tensor.total for tensor in account(tmp_path / "model-tuned.lepton").tensors)
    assert tensors == Recipe.from_json(recipe.read_text()).bytes <= 2000
    tuned = load_model(tmp_path / "model-tuned.lepton")
    assert float(np.mean(np.argmax(tuned(x), -1) != np.argmax(net(variables, x), -1))) < 0.1
    assert main([*words[:-1], "10", "--json"]) == 2
    assert "less than the smallest recipe needs" in capsys.readouterr().err
    assert main(words[:4]) == 2
    assert "give at least one limit" in capsys.readouterr().err
    assert json.loads(recipe.read_text())["measured"] > 0
