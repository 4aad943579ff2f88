"""Sentences as the mean of their words."""

from typing import Any

from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.tokens import as_tokens, mean_of_words


class BagOfEmbeddings(nn.Module):
    """Classify sentences by the mean of their words' vectors, a dense layer with ReLU, and a dense layer.

    Args:
      vocabulary: how many tokens, padding (0) among them.
      classes: how many logits.
      width: of the words' vectors.
      hidden: width of the dense layer between.
      dropout: fraction of the mean's and of the hidden layer's values left out in training.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = BagOfEmbeddings(vocabulary=11, width=4)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))[0].shape
      (2, 2)

    Source: M. Iyyer et al., Deep unordered composition rivals syntactic methods for text classification, 2015, section 2, with
    one hidden layer; dropout is of values, not of words.
    """

    vocabulary: int
    classes: int = 2
    width: int = 64
    hidden: int = 64
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of tokens ``[B, L]`` or ``[B, L, 1, 1]``; `train` leaves values out."""
        tokens = as_tokens(x)
        y = mean_of_words(nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="words")(tokens), tokens)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(y)
