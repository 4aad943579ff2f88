"""LeNet-300-100, the fully connected network that compression papers start with."""

from typing import Any

from flax import linen as nn

from lepton_jax.core.typing import Array


class LeNet300(nn.Module):
    """Classify flattened inputs by dense layers with ReLU between them.

    At 784 inputs the defaults have 784*300 + 300 + 300*100 + 100 + 100*10 + 10 = 266,610 parameters.

    Args:
      classes: how many logits.
      hidden: widths of the hidden layers.
      dtype: of the computation; parameters stay float32. None computes in the dtype that inputs and parameters promote to.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> variables = jax.eval_shape(LeNet300().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> variables["params"]["Dense_0"]["kernel"].shape
      (784, 300)

    Source: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998, with ReLU as in S. Han, H. Mao and
    W. Dally, Deep Compression, 2016, table 1.
    """

    classes: int = 10
    hidden: tuple[int, ...] = (300, 100)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return logits ``[B, classes]`` of inputs ``[B, ...]``."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.classes, dtype=self.dtype)(x)
