"""Residual networks for 32 x 32 pixels: ResNet-20, 32, 44, 56, 110."""

from typing import Any

from flax import linen as nn

from lepton_jax.core.errors import check_option
from lepton_jax.core.typing import Array
from lepton_jax.models.resnet import BasicBlock, Shortcut, head, stages, stem


class ResNetCifar(nn.Module):
    """Classify small images by a 3x3 convolution, three stages of basic blocks, a global mean and a dense layer.

    A network of depth ``6 n + 2`` has n blocks a stage. ResNet-20 with padded shortcuts has 269,722 trainable parameters.

    Args:
      classes: how many logits.
      depth: 20, 32, 44, 56, 110, ...
      features: channels of the first stage; the others have two and four times as many.
      shortcut: ``"pad"`` is the paper's option A (``x[:, ::2, ::2]``, zero channels on both sides), ``"projection"`` option B.
      dtype: of the computation; parameters stay float32. None computes in the dtype that inputs and parameters promote to.

    Raises:
      ValueError: if no such depth or shortcut exists.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> variables = jax.eval_shape(ResNetCifar(depth=8, features=4).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> variables["params"]["Dense_0"]["kernel"].shape
      (16, 10)

    Source: K. He et al., Deep residual learning for image recognition, 2016, section 4.2.
    """

    classes: int = 10
    depth: int = 20
    features: int = 16
    shortcut: Shortcut = "pad"
    dtype: Any = None

    def __post_init__(self) -> None:
        check_option("shortcut", self.shortcut, Shortcut)
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n blocks a stage (8, 14, 20, 32, 56, ...); got {self.depth}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of images ``[B, H, W, C]``; `train` uses and updates the batch's statistics."""
        blocks = 3 * ((self.depth - 2) // 6,)
        return head(self, stages(self, stem(self, x, train), BasicBlock, blocks, train, shortcut=self.shortcut))
