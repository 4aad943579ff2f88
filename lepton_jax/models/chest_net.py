"""A convolutional network for grey images whose brightness says nothing."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array


class ChestNet(nn.Module):
    """Classify images by 3x3 convolutions, each with batch norm, ReLU and 2x2 max pooling, dropout, and one dense layer.

    Every image is first shifted and scaled to mean 0 and deviation 1: X-ray images differ in exposure.

    Args:
      classes: how many logits.
      features: channels of the convolutions.
      dropout: fraction of the last layer's inputs left out in training.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax
      >>> variables = jax.eval_shape(ChestNet().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> variables["params"]["Dense_0"]["kernel"].shape
      (1024, 2)

    Source: as `CNN`.
    """

    classes: int = 2
    features: tuple[int, ...] = (16, 32, 64)
    dropout: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of images ``[B, H, W, C]``; `train` uses and updates the batch's statistics."""
        centred = x - jnp.mean(x, axis=(1, 2, 3), keepdims=True)
        x = centred / (jnp.sqrt(jnp.mean(jnp.square(centred), axis=(1, 2, 3), keepdims=True)) + 1e-3)
        for width in self.features:
            x = nn.Conv(width, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2), padding="SAME")
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.classes, dtype=self.dtype)(x)
