"""A small convolutional network with batch norm, for images from 8 x 8 pixels upwards."""

from typing import Any

from flax import linen as nn

from lepton_jax.core.typing import Array


class CNN(nn.Module):
    """Classify images by 3x3 convolutions, each with batch norm, ReLU and 2x2 max pooling, and one dense layer.

    Every pooling halves height and width (rounding up), so three of them bring 8x8 down to 1x1 and 28x28 to 4x4.

    Args:
      classes: how many logits.
      features: channels of the convolutions.
      dtype: of the computation; parameters stay float32. None computes in the dtype that inputs and parameters promote to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> variables = jax.eval_shape(CNN().init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> variables["params"]["Dense_0"]["kernel"].shape, sorted(variables)
      ((64, 10), ['batch_stats', 'params'])

    Source: the usual small CNN; batch norm as in S. Ioffe and C. Szegedy, Batch Normalization, 2015.
    """

    classes: int = 10
    features: tuple[int, ...] = (16, 32, 64)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of images ``[B, H, W, C]``; `train` uses and updates the batch's statistics."""
        for width in self.features:
            x = nn.Conv(width, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2), padding="SAME")
        return nn.Dense(self.classes, dtype=self.dtype)(x.reshape(x.shape[0], -1))
