"""Weights of residual networks that others trained and published under PyTorch's names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.interchange import npz, safetensors_file
from lepton_jax.models.resnet import ResNet
from lepton_jax.models.resnet_cifar import ResNetCifar

_BATCH_NORM = {"weight": ("params", "scale"), "bias": ("params", "bias")} | {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_IMAGE = 3  # channels


@checked
def load_torch_resnet(path: str | os.PathLike[str], module: ResNet | ResNetCifar) -> PyTree:
    """Load a PyTorch residual network's state dict into the variables of a module.

    Those of torchvision (``resnet18``: ``ResNet()``; ``resnet34``: ``ResNet(blocks=(3, 4, 6, 3))``; ``resnet50``: with
    ``block="bottleneck"`` too) and those for CIFAR with the same names. The head may be called ``fc`` or ``linear``, a
    projection ``downsample`` or ``shortcut``, and all names may begin with ``module.``. No PyTorch is needed: its users
    write the file by ``safetensors.torch.save_file(model.state_dict(), path)``, or as an npz.

    Kernels are transposed from OIHW to HWIO, the dense layer's from ``[out, in]`` to ``[in, out]``; values and dtypes stay
    as they are. `num_batches_tracked` has no counterpart.

    Args:
      path: ``.safetensors`` or ``.npz``.
      module: the network, with the widths of the published one.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` with NumPy leaves, for ``module.apply(variables, images)``; images are
      ``[B, H, W, 3]``, standardised as in the network's training.

    Raises:
      ValueError: with every name that is missing, unknown, not floating or of another shape.

    Example:
      >>> load_torch_resnet("absent.npz", ResNet())
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.npz'

    Source: names are those of torchvision.models.resnet, which the CIFAR networks of Y. Idelbayev ("akamaster") follow.
    """
    read = safetensors_file.read_arrays if os.fspath(path).endswith(".safetensors") else npz.read_arrays
    given = {name: array for name, array in read(path)[0].items() if not name.endswith("num_batches_tracked")}
    arrays = {_common(name): array for name, array in given.items()}
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, _IMAGE)))
    leaves = paths.flatten(template)
    found: dict[Path, np.ndarray] = {}
    names = torch_names(module)
    kind = f"{type(module).__name__} of this size"
    with collect(f"{os.fspath(path)} is not a {kind} under PyTorch's names") as problems:
        if len(arrays) != len(given):
            problems.append(f"{len(given) - len(arrays)} of its names differ from others by no more than a prefix; remove them")
        problems.extend(f"{name}: missing" for name in names if name not in arrays)
        problems.extend(f"{shown(name)}: unknown" for name in arrays if name not in names)
        for name, leaf_path in names.items():
            if name not in arrays:
                continue
            shape = _torch_shape(leaves[leaf_path].shape)
            if arrays[name].shape != shape or not paths.is_floating(arrays[name]):
                found_text = f"{arrays[name].dtype}{list(arrays[name].shape)}"
                problems.append(f"{name}: {found_text}, not float32{list(shape)}")
            else:
                found[leaf_path] = _reorder(arrays[name])
    return paths.replace(template, found)


@checked
def load_resnet20(path: str | os.PathLike[str]) -> PyTree:
    """Load a PyTorch ResNet-20 for CIFAR-10 into the variables of ``ResNetCifar(depth=20, shortcut="pad")``.

    Args:
      path: as in `load_torch_resnet`.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, NumPy leaves.

    Raises:
      ValueError: with every name that is missing, unknown or of another shape.

    Example:
      >>> load_resnet20("absent.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: [Errno 2] No such file or directory: 'absent.npz'
    """
    return load_torch_resnet(path, ResNetCifar())


def torch_names(module: ResNet | ResNetCifar) -> Mapping[str, Path]:
    """Return ``{PyTorch's name: path in the Linen variables}`` of a residual network.

    Example:
      >>> names = torch_names(ResNet(blocks=(1, 1), features=4))
      >>> names["layer2.0.downsample.1.running_var"], names["fc.weight"]
      ('batch_stats/BasicBlock_1/BatchNorm_2/var', 'params/Dense_0/kernel')
    """
    names: dict[str, Path] = {"fc.weight": "params/Dense_0/kernel", "fc.bias": "params/Dense_0/bias"}

    def layer(conv: str, norm: str, block: str, number: int) -> None:
        names[f"{conv}.weight"] = f"params/{block}Conv_{number}/kernel"
        for name, (collection, leaf) in _BATCH_NORM.items():
            names[f"{norm}.{name}"] = f"{collection}/{block}BatchNorm_{number}/{leaf}"

    layer("conv1", "bn1", "", 0)
    bottleneck = isinstance(module, ResNet) and module.block == "bottleneck"
    depth, kind = (3, "Bottleneck") if bottleneck else (2, "BasicBlock")
    blocks = module.blocks if isinstance(module, ResNet) else ((module.depth - 2) // 6,) * 3
    projects = isinstance(module, ResNet) or module.shortcut == "projection"
    index = 0
    for stage, count in enumerate(blocks):
        for i in range(count):
            torch, linen = f"layer{stage + 1}.{i}", f"{kind}_{index}/"
            for number in range(depth):
                layer(f"{torch}.conv{number + 1}", f"{torch}.bn{number + 1}", linen, number)
            # The first block of a stage changes the shape; in the first stage only a bottleneck does, which widens.
            if projects and i == 0 and (stage > 0 or bottleneck):
                layer(f"{torch}.downsample.0", f"{torch}.downsample.1", linen, depth)
            index += 1
    return names


def _common(name: str) -> str:
    """The name as torchvision has it."""
    name = name.removeprefix("module.").replace(".shortcut.", ".downsample.")
    return f"fc.{name.removeprefix('linear.')}" if name.startswith("linear.") else name


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)])


def _reorder(array: Any) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
    return np.ascontiguousarray(array.transpose(axes))
