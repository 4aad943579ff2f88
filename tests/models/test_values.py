"""What the models compute, against NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from lepton_jax.models import CNN, BasicBlock, LeNet5, LeNet300


def fresh(variables, seed: int):
    """Replace every leaf by random numbers, so that biases and norms count too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.2, 1.0, leaf.shape).astype(np.float32) - 0.4, variables)


def init(model, x, seed: int = 0, **options):
    return fresh(jax.eval_shape(lambda key: model.init(key, x, **options), jax.random.key(0)), seed)


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve one image [H, W, C] with an HWIO kernel, without padding, as neural networks do."""
    outputs = [scipy.signal.correlate(image, kernel[..., o], mode="valid")[..., 0] for o in range(kernel.shape[-1])]
    return np.stack(outputs, axis=-1)


def pool(image: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    return image.reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))


def f64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def test_lenet_300_100_is_dense_relu_dense_relu_dense():
    model = LeNet300(classes=3, hidden=(5, 4))
    x = np.random.default_rng(1).standard_normal((6, 4, 4, 1)).astype(np.float32)
    variables = init(model, x)
    y = f64(x).reshape(6, 16)
    for i in range(3):
        layer = f64(variables["params"][f"Dense_{i}"])
        y = y @ layer["kernel"] + layer["bias"]
        y = np.maximum(y, 0) if i < 2 else y
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), y, rtol=1e-5, atol=1e-5)


def test_lenet5_is_caffes():
    model = LeNet5(classes=3, features=(2, 3, 4))
    x = np.random.default_rng(1).standard_normal((2, 28, 28, 1)).astype(np.float32)
    variables = init(model, x)
    params = f64(variables["params"])
    for image, got in zip(f64(x), jax.jit(model.apply)(variables, x), strict=True):
        y = image
        for i in range(2):
            y = pool(correlate(y, params[f"Conv_{i}"]["kernel"]) + params[f"Conv_{i}"]["bias"])
        assert y.shape == (4, 4, 3)
        y = np.maximum(y.ravel() @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
        y = y @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_cnn_normalises_by_the_batch_in_training_and_by_the_averages_after(train: bool):
    model = CNN(classes=3, features=(4,))
    x = np.random.default_rng(1).standard_normal((5, 4, 4, 2)).astype(np.float32)
    variables = init(model, x)
    variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + np.float32(0.5), variables["batch_stats"])
    params, stats = f64(variables["params"]), f64(variables["batch_stats"])["BatchNorm_0"]
    y = np.stack([correlate(np.pad(image, ((1, 1), (1, 1), (0, 0))), params["Conv_0"]["kernel"]) for image in f64(x)])
    mean, var = (y.mean((0, 1, 2)), y.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    norm = (y - mean) / np.sqrt(var + 1e-5) * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]
    pooled = np.stack([pool(image) for image in np.maximum(norm, 0)]).reshape(5, -1)
    expected = pooled @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    got = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"] if train else False))(variables, x)
    if train:
        got, updates = got
        for name, value in (("mean", mean), ("var", var)):
            moved = 0.9 * stats[name] + 0.1 * value
            np.testing.assert_allclose(updates["batch_stats"]["BatchNorm_0"][name], moved, rtol=1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("inputs", "left", "right"), [(4, 2, 2), (5, 1, 2)])
def test_padded_shortcut_subsamples_and_adds_zero_channels(inputs: int, left: int, right: int):
    block = BasicBlock(8, stride=2, shortcut="pad")
    x = np.random.default_rng(0).standard_normal((2, 5, 6, inputs)).astype(np.float32)
    silent = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), jax.eval_shape(block.init, jax.random.key(0), x))
    expected = np.pad(np.maximum(x[:, ::2, ::2], 0), ((0, 0), (0, 0), (0, 0), (left, right)))
    np.testing.assert_array_equal(jax.jit(block.apply)(silent, x), expected)


def test_padding_cannot_take_channels_away():
    with pytest.raises(ValueError, match=r'4 cannot become 2\. Use "projection"'):
        jax.eval_shape(BasicBlock(2, shortcut="pad").init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)))


def test_strided_convolutions_pad_one_pixel_on_both_sides():
    block = BasicBlock(2, stride=2, shortcut="projection")
    x = np.random.default_rng(0).standard_normal((1, 6, 6, 2)).astype(np.float32)
    variables = init(block, x)
    # Seen through capture: the first convolution alone, every second place of the dense one with padding 1.
    _, seen = block.apply(variables, x, capture_intermediates=lambda module, _: module.name == "Conv_0")
    got = jax.tree.leaves(seen["intermediates"]["Conv_0"])[0][0]
    dense = correlate(np.pad(f64(x)[0], ((1, 1), (1, 1), (0, 0))), f64(variables)["params"]["Conv_0"]["kernel"])
    np.testing.assert_allclose(got, dense[::2, ::2], rtol=1e-5, atol=1e-5)
