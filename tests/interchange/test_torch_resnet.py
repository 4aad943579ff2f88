"""Weights of others: names, layouts, a block computed by hand, and the accuracy that a publisher states."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lepton_jax.core import paths
from lepton_jax.data import eval_batches, load_cifar10_subset, standardize
from lepton_jax.interchange import load_resnet20, load_torch_resnet
from lepton_jax.interchange.torch_resnet import torch_names
from lepton_jax.models import BasicBlock, Bottleneck, ResNet, ResNetCifar

# Counted from the published state dicts of torchvision (num_batches_tracked left out) and of ResNet-20 for CIFAR-10.
PUBLISHED = {
    "resnet18": (ResNet(), 102, 11_699_112, "layer4.1.bn2.running_var"),
    "resnet34": (ResNet(blocks=(3, 4, 6, 3)), 182, 21_814_696, "layer3.5.conv2.weight"),
    "resnet50": (ResNet(blocks=(3, 4, 6, 3), block="bottleneck"), 267, 25_610_152, "layer1.0.downsample.0.weight"),
    "resnet20": (ResNetCifar(), 97, 271_098, "layer3.2.bn2.weight"),
}


def leaves_of(module):
    return paths.flatten(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def published(module, seed: int = 0) -> dict[str, np.ndarray]:
    rng, leaves = np.random.default_rng(seed), leaves_of(module)
    arrays = {}
    for name, path in torch_names(module).items():
        shape = leaves[path].shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        arrays[name] = np.abs(rng.standard_normal(shape)).astype(np.float32) + 0.1
    return arrays


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_are_those_of_the_published_network(name):
    module, tensors, elements, one = PUBLISHED[name]
    names, leaves = torch_names(module), leaves_of(module)
    assert sorted(names.values()) == sorted(leaves)
    assert (len(names), sum(leaf.size for leaf in leaves.values())) == (tensors, elements)
    assert one in names


def test_every_leaf_of_resnet20_is_filled_in_its_layout(tmp_path: Path):
    arrays = published(ResNetCifar())
    arrays = {name.replace("fc.", "linear."): array for name, array in arrays.items()}
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


def conv64(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """PyTorch's conv2d, channels first, float64, padding of half the kernel."""
    pad = weight.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight)


def norm64(x: np.ndarray, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    weight, bias, mean, var = (
        arrays[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def block64(x: np.ndarray, arrays: dict[str, np.ndarray], name: str, strides: tuple[int, ...]) -> np.ndarray:
    """A residual block of torchvision, `strides` being those of its convolutions."""
    y = x
    for i, stride in enumerate(strides, 1):
        y = norm64(conv64(y, arrays[f"{name}.conv{i}.weight"], stride), arrays, f"{name}.bn{i}")
        y = np.maximum(y, 0) if i < len(strides) else y
    down = conv64(x, arrays[f"{name}.downsample.0.weight"], max(strides))
    return np.maximum(y + norm64(down, arrays, f"{name}.downsample.1"), 0)


@pytest.mark.parametrize(
    ("module", "block", "strides"),
    [
        (ResNet(classes=5, blocks=(1, 1), features=4), BasicBlock(8, stride=2), (2, 1)),
        (ResNet(classes=5, blocks=(1, 1), features=4, block="bottleneck"), Bottleneck(8, stride=2), (1, 2, 1)),
    ],
    ids=["basic", "bottleneck"],
)
def test_a_block_computes_what_pytorch_computes(module, block, strides, tmp_path: Path):
    arrays = published(module, seed=1)
    prefixed = {f"module.{name}": array for name, array in arrays.items()}
    save_file(prefixed, tmp_path / "w.safetensors")  # what a wrapped model's state dict gives
    variables = load_torch_resnet(tmp_path / "w.safetensors", module)
    inputs = 4 if isinstance(block, BasicBlock) else 16
    x = np.random.default_rng(2).standard_normal((2, inputs, 7, 7))
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    own = {collection: tree[f"{type(block).__name__}_1"] for collection, tree in variables.items()}
    found = block.apply(own, jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32))
    expected = block64(x, exact, "layer2.0", strides).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    assert np.count_nonzero(expected) > expected.size / 4


def test_every_wrong_name_and_shape_is_reported_at_once(tmp_path: Path):
    arrays = published(ResNetCifar())
    del arrays["layer1.0.bn1.bias"]
    arrays["head.weight"] = np.zeros(3, np.float32)
    arrays["fc.bias"] = np.zeros(11, np.float32)
    arrays["bn1.weight"] = np.zeros(16, np.int32)
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match="not a ResNetCifar of this size") as caught:
        load_resnet20(tmp_path / "w.npz")
    assert str(caught.value).splitlines()[1:] == [
        "  layer1.0.bn1.bias: missing",
        "  head.weight: unknown",
        "  fc.bias: float32[11], not float32[10]",
        "  bn1.weight: int32[16], not float32[16]",
    ]


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
