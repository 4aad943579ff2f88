"""A small transformer that classifies sentences."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.block import Block
from lepton_jax.models.tokens import as_tokens, mean_of_words


class TextClassifier(nn.Module):
    """Classify sentences by blocks of self-attention, the mean over their words, and a dense layer.

    Attention is causal, as in `Transformer`: padding stands at the end, so that no word ever looks at it, and no mask is
    needed.

    Args:
      vocabulary: how many tokens, padding (0) among them.
      classes: how many logits.
      depth: how many blocks.
      width: of the residual stream.
      heads: of attention; divides `width`.
      mlp: hidden width of a block's layer pair.
      max_length: the longest sentence.
      dropout: fraction of the embeddings' and of the mean's values left out in training.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Raises:
      ValueError: if a sentence is too long.

    Example:
      >>> import jax
      >>> model = TextClassifier(vocabulary=11, depth=1, width=8, heads=2, mlp=16, max_length=4)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))[0].shape
      (2, 2)

    Source: A. Vaswani et al., Attention is all you need, 2017; the blocks are those of `Transformer`, the mean in place of a
    token of its own for the class.
    """

    vocabulary: int
    classes: int = 2
    depth: int = 2
    width: int = 64
    heads: int = 4
    mlp: int = 128
    max_length: int = 64
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of tokens ``[B, L]`` or ``[B, L, 1, 1]``; `train` leaves values out."""
        tokens = as_tokens(x)
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"sentences may have {self.max_length} tokens; got {length}. Raise max_length.")
        y = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="words")(tokens)
        y = y + nn.Embed(self.max_length, self.width, dtype=self.dtype, name="places")(jnp.arange(length))[None]
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        for _ in range(self.depth):
            y = Block(heads=self.heads, mlp=self.mlp, dtype=self.dtype)(y)
        y = mean_of_words(nn.LayerNorm(dtype=self.dtype)(y), tokens)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(y)
