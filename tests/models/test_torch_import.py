"""Third-party ResNet-20 weights: names, layouts, and the accuracy that their publisher states."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.data import eval_batches, load_cifar10_subset, standardize
from lepton_jax.models import ResNetCifar, load_resnet20
from lepton_jax.models.torch_import import _expected


def published(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, (shape, _) in _expected().items()}


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


def test_every_leaf_of_the_network_is_filled_in_its_layout(tmp_path: Path):
    arrays = published()
    np.savez(tmp_path / "w.npz", **arrays, **{"bn1.num_batches_tracked": np.int64(3)})
    variables = load_resnet20(tmp_path / "w.npz")
    expected = jax.eval_shape(ResNetCifar().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert described(variables) == described(expected)
    block = variables["params"]["BasicBlock_4"]
    np.testing.assert_array_equal(block["Conv_1"]["kernel"][0, 2, 3, 5], arrays["layer2.1.conv2.weight"][5, 3, 0, 2])
    stats = variables["batch_stats"]["BasicBlock_8"]["BatchNorm_0"]
    np.testing.assert_array_equal(stats["var"], arrays["layer3.2.bn1.running_var"])
    np.testing.assert_array_equal(variables["params"]["Dense_0"]["kernel"], arrays["linear.weight"].T)
    np.testing.assert_array_equal(variables["params"]["BatchNorm_0"]["scale"], arrays["bn1.weight"])


def test_every_wrong_name_and_shape_is_reported_at_once(tmp_path: Path):
    arrays = published()
    del arrays["layer1.0.bn1.bias"]
    arrays["fc.weight"] = np.zeros(3, np.float32)
    arrays["linear.bias"] = np.zeros(11, np.float32)
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match="not a ResNet-20") as caught:
        load_resnet20(tmp_path / "w.npz")
    for line in ("layer1.0.bn1.bias: missing", "fc.weight: unknown", "linear.bias: float32[11], not float32[10]"):
        assert line in str(caught.value)


def test_published_weights_classify_915_of_1000_lossless_test_images():
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not (folder / "weights").is_dir() or not (folder / "cifar10_subset").is_dir():
        pytest.skip(f"optional real data: no weights and CIFAR-10 sheets in {folder}")
    variables = load_resnet20(folder / "weights" / "resnet20_cifar10.npz")
    dataset = load_cifar10_subset(folder / "cifar10_subset", validation=400)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (3600, 400, 1000)
    predict = jax.jit(lambda images: ResNetCifar().apply(variables, images).argmax(axis=-1))
    correct = sum(
        int(((predict(standardize(batch.images)) == batch.labels) & batch.mask).sum())
        for batch in eval_batches(dataset.test, 500)
    )
    assert 913 <= correct <= 917  # 915 here; rounding may turn an image that is on the edge
