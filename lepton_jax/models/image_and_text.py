"""Drawings and their names: a category of both, and vectors that are near where they belong together."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.tokens import as_tokens, mean_of_words


class ImageAndText(nn.Module):
    """Two towers, one for an image, one for a text's tokens, as `lepton_jax.data.load_emoji` holds them in one row.

    The image goes through convolutions with batch norm, ReLU and 2x2 max pooling, the text is the mean of its tokens' vectors.
    Each tower ends in a dense layer; the logits are of both ends side by side.

    Args:
      vocabulary: how many tokens, padding (0) among them.
      classes: how many logits.
      pixels: height and width of the image, which has three channels.
      features: channels of the convolutions.
      width: of the tokens' vectors and of both ends.
      dropout: fraction of the ends' values left out in training.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax
      >>> model = ImageAndText(vocabulary=11, classes=3, pixels=8, width=4)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 8 * 8 * 3 + 5, 1, 1)))[0].shape
      (2, 11)

    Source: A. Radford et al., Learning transferable visual models from natural language supervision, 2021, on small networks.
    """

    vocabulary: int
    classes: int
    pixels: int = 32
    features: tuple[int, ...] = (16, 32, 64)
    width: int = 64
    dropout: float = 0.3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return ``[B, classes + 2 width]``: logits, the image's vector, the text's, both of length 1."""
        x = x.reshape(x.shape[0], -1)
        size = self.pixels * self.pixels * 3
        y, tokens = x[:, :size].reshape(-1, self.pixels, self.pixels, 3), as_tokens(x[:, size:])
        for channels in self.features:
            y = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)(y)
            y = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(y)
            y = nn.max_pool(nn.relu(y), (2, 2), strides=(2, 2), padding="SAME")
        image = nn.Dense(self.width, dtype=self.dtype, name="image")(y.reshape(y.shape[0], -1))
        words = mean_of_words(nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="words")(tokens), tokens)
        text = nn.Dense(self.width, dtype=self.dtype, name="text")(words)
        both = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(jnp.concatenate([image, text], axis=-1)))
        logits = nn.Dense(self.classes, dtype=self.dtype, name="head")(both)
        vectors = [v / jnp.sqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + 1e-6) for v in (image, text)]
        return jnp.concatenate([logits, *vectors], axis=-1)
