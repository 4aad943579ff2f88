"""A small detector without anchors."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array


class Detector(nn.Module):
    """Say of each cell of a grid, 8 pixels apart, which class is there, and how far its box goes to all four sides.

    Convolutions with batch norm and ReLU, the first three of which halve height and width, then a head of 1x1 convolutions.

    Args:
      classes: how many.
      features: channels of the three that halve.
      depth: further 3x3 convolutions, of the last's channels.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax
      >>> jax.eval_shape(Detector().init_with_output, jax.random.key(0), jnp.zeros((2, 33, 40, 3)))[0].shape
      (2, 4, 5, 7)

    Source: Z. Tian et al., FCOS: fully convolutional one-stage object detection, 2019, with one scale and without centre-ness.
    """

    classes: int = 3
    features: tuple[int, int, int] = (12, 24, 48)
    depth: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return ``[B, H / 8, W / 8, classes + 4]`` of ``[B, H + 1, W, 3]``, whose last row is not read.

        Logits of the classes, and the logarithms of the distances to left, top, right and bottom, in units of 8 pixels.
        """
        x = x[:, :-1]
        for channels, stride in [*((channels, 2) for channels in self.features), *[(self.features[-1], 1)] * self.depth]:
            x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x))
        rare = nn.initializers.constant(-4.0)  # hardly any cell is the middle of a box at the beginning
        logits = nn.Conv(self.classes, (1, 1), bias_init=rare, dtype=self.dtype, name="classes")(x)
        sides = nn.Conv(4, (1, 1), dtype=self.dtype, name="sides")(x)
        return jnp.concatenate([logits, sides], axis=-1)
