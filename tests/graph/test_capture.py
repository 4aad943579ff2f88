"""Captured values are those that the model itself computes."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core.paths import flatten
from lepton_jax.graph.capture import capture

sys.path.insert(0, str(Path(__file__).parent))
from models_for_graph import MODELS, Block, ConvNet


def test_modules_equal_flax_intermediates():
    """Linen's own capture is the reference: every module's output, here without the model's help."""
    _, variables, (x,), _ = MODELS["convnet eval"]
    model = ConvNet()
    logits, extra = model.apply(variables, x, False, capture_intermediates=True, mutable=["intermediates"])
    outputs, captured = jax.jit(capture(lambda v, x: model.apply(v, x, False), "ConvNet*"))(variables, x)
    np.testing.assert_allclose(outputs, logits, rtol=1e-5, atol=1e-6)
    expected = {
        path.removesuffix("/0").removesuffix("__call__"): leaf for path, leaf in flatten(extra["intermediates"]).items()
    }
    assert len(expected) == 7
    for module, value in expected.items():
        mine = captured[f"ConvNet/{module}".strip("/")]
        assert mine.dtype == value.dtype
        np.testing.assert_allclose(mine, value, rtol=1e-5, atol=1e-6, err_msg=module)


@pytest.mark.parametrize("select", ["Dense_0", "ConvNet/Dense_0", "*/Dense_*", "Den*"])
def test_patterns_for_one_module(select):
    apply, variables, inputs, _ = MODELS["convnet train"]
    (logits, _), captured = capture(apply, select)(variables, *inputs)
    assert list(captured) == ["ConvNet/Dense_0"]
    np.testing.assert_array_equal(captured["ConvNet/Dense_0"], logits)


def test_several_patterns_as_a_list_or_a_tuple():
    apply, variables, inputs, _ = MODELS["convnet eval"]
    _, by_tuple = capture(apply, ("Dense_0", "Conv_0"))(variables, *inputs)
    _, by_list = capture(apply, ["Dense_0", "Conv_0"])(variables, *inputs)
    assert by_list.keys() == by_tuple.keys() == {"ConvNet/Dense_0", "ConvNet/Conv_0"}
    for wrong in (3, None, ["Dense_0", 3]):
        with pytest.raises(TypeError, match="capture: select must be") as error:
            capture(apply, wrong)(variables, *inputs)
        assert "\n" not in str(error.value)


def test_by_primitive_and_by_predicate():
    apply, variables, inputs, _ = MODELS["nnx train"]
    _, captured = capture(apply, ("conv_general_dilated", "dot_general"))(variables, *inputs)
    assert {name: value.shape for name, value in captured.items()} == {
        "conv_general_dilated": (2, 6, 6, 4),
        "dot_general": (2, 3),
    }
    wide = lambda name, eqn: eqn.primitive == "add" and eqn.out_avals[0].ndim == 4  # noqa: E731
    _, captured = capture(apply, wide)(variables, *inputs)
    assert captured
    assert all(value.ndim == 4 for value in captured.values())


def test_inside_scan_and_remat_is_stacked():
    apply, variables, inputs, _ = MODELS["transformer eval"]
    logits, captured = jax.jit(capture(apply, "ScanCheckpointBlock_0"))(variables, *inputs)
    [stacked] = captured.values()
    assert stacked.shape == (3, 2, 5, 6)
    x = variables["params"]["Embed_0"]["embedding"][inputs[0]]
    for layer in range(3):
        params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], variables["params"]["ScanCheckpointBlock_0"])
        x, _ = Block().apply({"params": params}, x, True)
        np.testing.assert_allclose(stacked[layer], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, apply(variables, *inputs), rtol=1e-5, atol=1e-6)


def test_gradients_flow_through_captured_values():
    """Feature distillation: a loss on a captured value alone."""

    def apply(v, x):
        with jax.named_scope("hidden"):
            h = jnp.tanh(x @ v["a"])
        return h @ v["b"]

    v = {"a": jnp.array([[0.3, -0.7]]), "b": jnp.ones((2, 1))}
    grads = jax.jit(jax.grad(lambda v: capture(apply, "hidden")(v, jnp.ones((1, 1)))[1]["hidden"].sum()))(v)
    np.testing.assert_allclose(grads["a"], 1 - np.tanh(v["a"]) ** 2, rtol=1e-6)
    assert grads["b"].tolist() == [[0.0], [0.0]]


def test_per_example_under_vmap():
    apply = lambda v, x: jnp.sin(x * v).sum()  # noqa: E731
    _, captured = jax.vmap(capture(apply, "sin"), in_axes=(None, 0))(2.0, jnp.arange(6.0).reshape(3, 2))
    np.testing.assert_allclose(captured["sin"], np.sin(2 * np.arange(6.0).reshape(3, 2)), rtol=1e-6)


def test_a_module_called_again_and_one_with_two_outputs():
    def apply(v, x):
        for _ in range(2):
            with jax.named_scope("shared"):
                x = jnp.tanh(x)
            x = x + v
        with jax.named_scope("pair"):
            a, b = jnp.sin(x), jnp.cos(x)
        return a * b

    x = jnp.float32(0.5)
    _, captured = capture(apply, ("shared*", "pair*"))(1.0, x)
    first = np.tanh(x)
    second = np.tanh(first + 1)
    expected = {"shared": first, "shared_1": second, "pair": np.sin(second + 1), "pair.1": np.cos(second + 1)}
    assert captured.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(captured[name], value, rtol=1e-6)


def test_a_selector_without_match_lists_what_there_is():
    apply, variables, inputs, _ = MODELS["convnet eval"]
    with pytest.raises(ValueError, match=r"select='Conv_9' matches no value .*ConvNet/Conv_0, .*dot_general") as error:
        capture(apply, ("Conv_0", "Conv_9"))(variables, *inputs)
    assert "BatchNorm_0" in str(error.value)


def test_out_of_a_while_loop_nothing_comes():
    apply = lambda v, x: jax.lax.while_loop(lambda c: c < v, lambda c: jnp.sin(c) + 2, x)  # noqa: E731
    with pytest.raises(ValueError, match="no value can be handed out of a while loop"):
        capture(apply, "sin")(2.0, 1.0)
    assert float(capture(apply, "while")(2.0, 1.0)[1]["while"]) > 2
