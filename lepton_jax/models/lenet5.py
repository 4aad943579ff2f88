"""LeNet-5 as Caffe has it, the convolutional network that compression papers start with."""

from typing import Any

from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.pooling import max_pool


class LeNet5(nn.Module):
    """Classify images by two 5x5 convolutions without padding, each followed by 2x2 max pooling, and two dense layers.

    At 28x28x1 inputs the shapes are 24x24x20, 12x12x20, 8x8x50, 4x4x50, 800, 500, 10 and the defaults have
    520 + 25,050 + 400,500 + 5,010 = 431,080 parameters. As in Caffe, the convolutions have no activation of their own.

    Args:
      classes: how many logits.
      features: channels of the two convolutions and width of the hidden dense layer.
      dtype: of the computation; parameters stay float32. None computes in the dtype that inputs and parameters promote to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> variables = jax.eval_shape(LeNet5().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> variables["params"]["Dense_0"]["kernel"].shape
      (800, 500)

    Source: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998; layer sizes of
    Caffe's examples/mnist/lenet.prototxt, used in S. Han, H. Mao and W. Dally, Deep Compression, 2016, table 1.
    """

    classes: int = 10
    features: tuple[int, int, int] = (20, 50, 500)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits ``[B, classes]`` of images ``[B, H, W, C]``."""
        for width in self.features[:2]:
            x = nn.Conv(width, (5, 5), padding="VALID", dtype=self.dtype)(x)
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.features[2], dtype=self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)
