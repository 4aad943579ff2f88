"""Residual networks for ImageNet-sized images (ResNet-18, 34, 50), and the blocks they share with those for CIFAR."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.errors import check_option
from lepton_jax.core.typing import Array

Shortcut = Literal["pad", "projection"]
"""How a shortcut changes shape: option A (subsample, pad channels with zeros) or option B (1x1 convolution and norm)."""
_BlockKind = Literal["basic", "bottleneck"]
_Stem = Literal["imagenet", "small"]


class Residual(nn.Module):
    """Base of the blocks: what each adds to a shortcut.

    Args:
      features: channels inside.
      stride: of the block and the shortcut.
      shortcut: how the shortcut changes shape, where it has to.
      dtype: of the computation.
    """

    features: int
    stride: int = 1
    shortcut: Shortcut = "projection"
    dtype: Any = None

    def __post_init__(self) -> None:
        check_option("shortcut", self.shortcut, Shortcut)
        super().__post_init__()


class BasicBlock(Residual):
    """Add two 3x3 convolutions to a shortcut.

    Args:
      features: channels of the output.
      stride: of the first convolution and the shortcut.
      shortcut: how the shortcut changes shape, where it has to.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> block = BasicBlock(8, stride=2, shortcut="pad")
      >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 6, 6, 4)))[0].shape
      (1, 3, 3, 8)

    Source: K. He et al., Deep residual learning for image recognition, 2016, figure 5 left; options A and B of section 4.1.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return ``[B, ceil(H / stride), ceil(W / stride), features]``."""
        y = _conv(self, self.features, 3, self.stride)(x)
        y = nn.relu(_norm(self, train)(y))
        y = _norm(self, train)(_conv(self, self.features, 3)(y))
        return nn.relu(y + _shortcut(self, x, self.features, train))


class Bottleneck(Residual):
    """Add a 1x1, a 3x3 and a widening 1x1 convolution to a shortcut.

    Args:
      features: channels inside; the output has four times as many.
      stride: of the 3x3 convolution and the shortcut.
      shortcut: how the shortcut changes shape, where it has to.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> jax.eval_shape(Bottleneck(4).init_with_output, jax.random.key(0), jnp.zeros((1, 6, 6, 4)))[0].shape
      (1, 6, 6, 16)

    Source: K. He et al., 2016, figure 5 right. Deviation: the stride is on the 3x3 convolution ("v1.5"), as in torchvision.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return ``[B, ceil(H / stride), ceil(W / stride), 4 * features]``."""
        y = nn.relu(_norm(self, train)(_conv(self, self.features, 1)(x)))
        y = nn.relu(_norm(self, train)(_conv(self, self.features, 3, self.stride)(y)))
        y = _norm(self, train)(_conv(self, 4 * self.features, 1)(y))
        return nn.relu(y + _shortcut(self, x, 4 * self.features, train))


class ResNet(nn.Module):
    """Classify images by a stem, stages of residual blocks that halve the image, a global mean and a dense layer.

    The defaults are ResNet-18; ``blocks=(3, 4, 6, 3)`` is ResNet-34, and with ``block="bottleneck"`` ResNet-50.

    Args:
      classes: how many logits.
      blocks: how many blocks each stage has.
      features: channels of the first stage; every stage doubles them.
      block: of two 3x3 convolutions, or a bottleneck.
      stem: ``"imagenet"`` is a 7x7 convolution of stride 2 and max pooling, a quarter of the size; ``"small"`` a 3x3
        convolution that keeps the size, for 32 x 32 pixels.
      dtype: of the computation; parameters stay float32. None computes in the dtype that inputs and parameters promote to.

    Example:
      >>> import jax
      >>> model = ResNet(classes=10, blocks=(1, 1), features=4, stem="small")
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))[0].shape
      (2, 10)

    Source: K. He et al., Deep residual learning for image recognition, 2016, table 1.
    """

    classes: int = 1000
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    features: int = 64
    block: _BlockKind = "basic"
    stem: _Stem = "imagenet"
    dtype: Any = None

    def __post_init__(self) -> None:
        check_option("block", self.block, _BlockKind)
        check_option("stem", self.stem, _Stem)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of images ``[B, H, W, C]``; `train` uses and updates the batch's statistics."""
        imagenet = self.stem == "imagenet"
        x = stem(self, x, train, 7, 2) if imagenet else stem(self, x, train)
        if imagenet:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = BasicBlock if self.block == "basic" else Bottleneck
        return head(self, stages(self, x, block, self.blocks, train))


def stages(parent: Any, x: Array, block: type[Residual], blocks: Sequence[int], train: bool, **settings: Any) -> Array:
    """Apply the stages of a residual network, each with twice the channels at half the size of the one before.

    Args:
      parent: the network; this is called inside its compact method.
      x: what the stem gives.
      block: of which the stages are made.
      blocks: how many each stage has.
      train: whether batch norm uses the batch's statistics.
      **settings: of the blocks.
    """
    for stage, count in enumerate(blocks):
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            x = block(parent.features * 2**stage, stride=stride, dtype=parent.dtype, **settings)(x, train)
    return x


def head(parent: Any, x: Array) -> Array:
    """Return the logits of what the last stage gives; called inside the network's compact method."""
    return nn.Dense(parent.classes, dtype=parent.dtype)(x.mean(axis=(1, 2)))


def stem(parent: Any, x: Array, train: bool, size: int = 3, stride: int = 1) -> Array:
    """Apply the first convolution, batch norm and ReLU; called inside the network's compact method."""
    return nn.relu(_norm(parent, train)(_conv(parent, parent.features, size, stride)(x)))


def _conv(parent: Any, features: int, size: int, stride: int = 1) -> nn.Conv:
    # Explicit padding: "SAME" would pad a strided convolution on one side only, unlike the published weights' networks.
    return nn.Conv(features, (size, size), stride, padding=size // 2, use_bias=False, dtype=parent.dtype)


def _norm(parent: Any, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=parent.dtype)


def _shortcut(parent: Any, x: Array, features: int, train: bool) -> Array:
    """Bring `x` to the block's output shape; called inside the block's compact method."""
    if parent.stride == 1 and x.shape[-1] == features:
        return x
    if parent.shortcut == "projection":
        return _norm(parent, train)(_conv(parent, features, 1, parent.stride)(x))
    missing = features - x.shape[-1]
    if missing < 0:
        raise ValueError(f'shortcut="pad" can only add channels; {x.shape[-1]} cannot become {features}. Use "projection".')
    x = x[:, :: parent.stride, :: parent.stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
