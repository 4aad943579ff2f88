"""Weights that others trained and published under PyTorch's names."""

import os
from typing import Any

import numpy as np

from lepton_jax.errors import collect
from lepton_jax.typing import PyTree

_BATCH_NORM = {"weight": ("params", "scale"), "bias": ("params", "bias")} | {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def load_resnet20(path: str | os.PathLike[str]) -> PyTree:
    """Load a PyTorch ResNet-20 for CIFAR-10 into the variables of ``ResNetCifar(depth=20, shortcut="pad")``.

    Kernels are transposed from OIHW to HWIO, the dense layer's from ``[out, in]`` to ``[in, out]``; values stay as they are.

    Args:
      path: an ``.npz`` of float32 arrays under PyTorch's names: ``conv1.weight``, ``layer1.0.bn1.running_mean``,
        ``linear.weight`` and so on.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, NumPy float32 leaves.

    Raises:
      ValueError: with every name that is missing, unknown or of another shape.

    Example:
      >>> load_resnet20("absent.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.npz'
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.endswith("num_batches_tracked")}
    expected = _expected()
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    with collect(f"{os.fspath(path)} is not a ResNet-20 for CIFAR-10 under PyTorch's names") as problems:
        problems.extend(f"{name}: missing" for name in expected if name not in arrays)
        problems.extend(f"{name}: unknown" for name in arrays if name not in expected)
        for name, (shape, keys) in expected.items():
            array = arrays.get(name)
            if array is None:
                continue
            if array.shape != shape or array.dtype != np.float32:
                problems.append(f"{name}: {array.dtype}{list(array.shape)}, not float32{list(shape)}")
            else:
                _put(variables, keys, _reorder(array))
    return variables


def _expected() -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Return ``{PyTorch name: (PyTorch shape, keys in the Linen variables)}``."""
    names: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "linear.weight": ((10, 64), ("params", "Dense_0", "kernel")),
        "linear.bias": ((10,), ("params", "Dense_0", "bias")),
    }

    def layer(torch: str, linen: tuple[str, ...], number: int, channels: tuple[int, int]) -> None:
        names[f"{torch}conv{number + 1}.weight"] = ((*channels, 3, 3), ("params", *linen, f"Conv_{number}", "kernel"))
        for name, (collection, leaf) in _BATCH_NORM.items():
            names[f"{torch}bn{number + 1}.{name}"] = (channels[:1], (collection, *linen, f"BatchNorm_{number}", leaf))

    layer("", (), 0, (16, 3))
    inputs = 16
    for stage, width in enumerate((16, 32, 64)):
        for i in range(3):
            block = (f"BasicBlock_{3 * stage + i}",)
            layer(f"layer{stage + 1}.{i}.", block, 0, (width, inputs))
            layer(f"layer{stage + 1}.{i}.", block, 1, (width, width))
            inputs = width
    return names


def _reorder(array: np.ndarray) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
    return np.ascontiguousarray(array.transpose(axes))


def _put(tree: dict[str, Any], keys: tuple[str, ...], leaf: np.ndarray) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = leaf
