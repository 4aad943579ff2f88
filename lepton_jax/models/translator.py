"""An encoder-decoder transformer that translates."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.beam_search import beam_search
from lepton_jax.models.tokens import PADDING, as_tokens
from lepton_jax.models.translator_blocks import DecoderBlock, EncoderBlock


class Source(NamedTuple):
    """Sentences that a `Translator` is to translate.

    Attributes:
      tokens: ``[B, S]`` or ``[B, S, 1, 1]``, 0 at the end.
    """

    tokens: Array


class Translator(nn.Module):
    """Predict every token of a translation from the source and the tokens before it; or translate, by beam search.

    Pre-norm blocks: of the encoder with attention in both directions, of the decoder with causal attention and with attention
    to what the encoder made. Positions rotate queries and keys, except between the two. One embedding table serves both
    languages and, transposed, the logits.

    Args:
      vocabulary: how many tokens, padding (0) among them.
      encoder, decoder: how many blocks.
      width: of the residual stream.
      heads: of attention.
      mlp: hidden width of the layer pairs.
      dropout: fraction of the embeddings' and of each block's output values left out in training.
      begin, end: tokens at the ends of a sentence.
      beams: of the search.
      longest: tokens of a translation at most, more than of the source.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax
      >>> model = Translator(vocabulary=11, encoder=1, decoder=1, width=8, heads=2, mlp=16)
      >>> pairs = jnp.array([[5, 6, 3, 7, 8, 3]])
      >>> logits, variables = model.init_with_output(jax.random.key(0), pairs)
      >>> logits.shape, model.apply(variables, Source(pairs[:, :3])).shape
      ((1, 3, 11), (1, 13))

    Source: A. Vaswani et al., Attention is all you need, 2017; pre-norm: R. Xiong et al., On layer normalization in the
    transformer architecture, 2020; rotations: J. Su et al., RoFormer, 2021.
    """

    vocabulary: int
    encoder: int = 3
    decoder: int = 2
    width: int = 256
    heads: int = 4
    mlp: int = 768
    dropout: float = 0.1
    begin: int = 2
    end: int = 3
    beams: int = 4
    longest: int = 10
    dtype: Any = None

    def setup(self) -> None:
        same: dict[str, Any] = {name: getattr(self, name) for name in ("width", "heads", "mlp", "dropout", "dtype")}
        self.words = nn.Embed(
            self.vocabulary, self.width, dtype=self.dtype, embedding_init=nn.initializers.normal(self.width**-0.5)
        )
        self.encoders = [EncoderBlock(**same) for _ in range(self.encoder)]
        self.decoders = [DecoderBlock(**same) for _ in range(self.decoder)]
        self.read, self.said = nn.LayerNorm(dtype=self.dtype), nn.LayerNorm(dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array | Source, train: bool = False) -> Array:
        """Return logits ``[B, T, vocabulary]`` of pairs, or translations of a `Source`, int32 ``[B, S + longest]``.

        Args:
          x: tokens ``[B, 2 T]`` or ``[B, 2 T, 1, 1]``: a sentence in the first half, its translation in the second, both closed
            by the end and filled up with 0. Logits at place t are of the translation's token t.
          train: leave values out.
        """
        if isinstance(x, Source):
            return self._translate(as_tokens(x.tokens))
        tokens = as_tokens(x)
        source, target = jnp.split(tokens, 2, axis=1)
        memory, there = self.encode(source, train)
        before = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=self.begin)
        y = self._embedded(before, train)
        for block in self.decoders:
            y = block(y, memory, there, train)
        return self.words.attend(self.said(y))

    def encode(self, source: Array, train: bool = False) -> tuple[Array, Array]:
        """Return what the decoder looks at, ``[B, S, width]``, and where there is a word, bool ``[B, S]``."""
        there = source != PADDING
        y = self._embedded(source, train)
        for block in self.encoders:
            y = block(y, there, train)
        return self.read(y), there

    def seen(self, memory: Array) -> list[tuple[Array, Array]]:
        """Return each decoder block's keys and values of what the encoder made; computed once a sentence."""
        return [block.seen(memory) for block in self.decoders]

    def say(self, tokens: Array, seen: Any, there: Array, cache: Any, number: Array) -> tuple[Array, Any]:
        """Return logits ``[B, K, vocabulary]`` after the last tokens ``[B, K]`` of K texts each, and the cache with them."""
        y, rooms = self._embedded(tokens, False), []
        for block, memory, room in zip(self.decoders, seen, cache):
            y, room = block.step(y, memory, there, room, number)
            rooms.append(room)
        return self.words.attend(self.said(y)), rooms

    def _embedded(self, tokens: Array, train: bool) -> Array:
        return self.drop(self.words(tokens) * self.width**0.5, deterministic=not train)

    def _translate(self, source: Array) -> Array:
        batch, steps = source.shape[0], source.shape[1] + self.longest
        memory, there = self.encode(source)
        seen, alone, variables = self.seen(memory), self.clone(parent=None), self.variables
        shape = (batch * self.beams, steps, self.heads, self.width // self.heads)
        cache = [(jnp.zeros(shape, keys.dtype), jnp.zeros(shape, values.dtype)) for keys, values in seen]

        def step(tokens: Array, cache: Any, number: Array) -> Any:
            return alone.apply(variables, tokens, seen, there, cache, number, method="say")

        return beam_search(step, cache, batch=batch, begin=self.begin, end=self.end, steps=steps, beams=self.beams)
