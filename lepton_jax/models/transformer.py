"""A causal decoder: small ones for characters and bytes, and the published language models of the Llama kind."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.errors import check_option, check_whole, collect
from lepton_jax.core.typing import Array
from lepton_jax.models.attention import Cache
from lepton_jax.models.block import LAYERS, Activation, Block, Norm, norm_of
from lepton_jax.models.rope import Rope

_Position = Literal["learned", "rotary"]
_OF_BLOCKS = (
    "heads",
    "mlp",
    "dtype",
    "kv_heads",
    "head_dim",
    "rope",
    "norm",
    "norm_offset",
    "epsilon",
    "head_norm",
    "activation",
    "gated",
    "biases",
)
"""What a decoder's blocks are told."""


class Transformer(nn.Module):
    """Predict the next token at every position, by pre-norm blocks of causal self-attention and a layer pair.

    ``x + attention(norm(x))``, then ``x + mlp(norm(x))``; a last norm, then logits. By default norms are LayerNorm and the
    layer pair has GELU; with other settings the blocks are those of Llama, Mistral, Qwen or Gemma.

    Args:
      vocabulary: how many tokens.
      depth: how many blocks.
      width: of the residual stream.
      heads: of attention; divides `width` unless `head_dim` is given.
      mlp: hidden width of the layer pair.
      max_length: the longest sequence that learned positions allow.
      position: learned embeddings, or rotations of queries and keys.
      tied: whether logits use the embedding table, transposed.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.
      kv_heads, head_dim, rope, norm, norm_offset, epsilon, head_norm, activation, gated, biases: of the blocks, see `Block`.
      windows: how many positions each block looks at; None: all, in every block.
      embedding_scale: what embeddings are multiplied by.
      scan: whether the blocks are one, run `depth` times over weights stacked along a first axis ("blocks"): compiled once.

    Raises:
      ValueError: if the settings do not fit together, or a sequence is too long.

    Example:
      >>> import jax
      >>> model = Transformer(vocabulary=11, depth=1, width=8, heads=2, mlp=16, max_length=4)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))[0].shape
      (2, 3, 11)

    Source: A. Vaswani et al., Attention is all you need, 2017; decoder only and pre-norm as in A. Radford et al., Language
    models are unsupervised multitask learners, 2019; rotary positions from J. Su et al., RoFormer, 2021, equation 34; the rest
    as in H. Touvron et al., Llama, 2023.
    """

    vocabulary: int
    depth: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 512
    max_length: int = 256
    position: _Position = "learned"
    tied: bool = False
    dtype: Any = None
    kv_heads: int | None = None
    head_dim: int | None = None
    rope: Rope = Rope()
    norm: Norm = "layer"
    norm_offset: float = 0.0
    epsilon: float = 1e-6
    head_norm: bool = False
    activation: Activation = "gelu"
    gated: bool = False
    biases: tuple[str, ...] = LAYERS
    windows: tuple[int | None, ...] | None = None
    embedding_scale: float = 1.0
    scan: bool = False

    def __post_init__(self) -> None:
        for name, options in (("position", _Position), ("norm", Norm), ("activation", Activation)):
            check_option(name, getattr(self, name), options)
        with collect("Transformer") as problems:
            if self.width % self.heads and self.head_dim is None:
                problems.append(f"heads must divide width; got {self.heads} heads and width {self.width}.")
            if self.heads % (self.kv_heads or self.heads):
                problems.append(f"kv_heads must divide heads; got {self.kv_heads} and {self.heads}.")
            if self.position == "rotary" and (self.head_dim or self.width // self.heads) % 2:
                had = f"{self.width} / {self.heads}" if self.head_dim is None else f"{self.head_dim}"
                problems.append(f"rotary positions need heads of even width; got {had}.")
            if unknown := [name for name in self.biases if name not in LAYERS]:
                problems.append(f"biases are of {', '.join(LAYERS)}; got {', '.join(map(str, unknown))}.")
            if self.windows is not None and len(self.windows) != self.depth:
                problems.append(f"windows needs one entry for each of {self.depth} blocks; got {len(self.windows)}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Array, cache: Cache | None = None, room: int | None = None) -> Any:
        """Return logits ``[B, L, vocabulary]`` of tokens, integers ``[B, L]``.

        Args:
          tokens: they stand after those that the cache has seen.
          cache: as an earlier call returned it. Tokens for which it has no room get logits that are NaN.
          room: begin a new cache for so many tokens in all.

        Returns:
          the logits; with a cache or a room ``(logits, cache)``.
        """
        length = tokens.shape[1]
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)
        x = embed(tokens)
        if room is not None:
            cache = self._empty(x, room)
        if self.embedding_scale != 1:
            x = x * jnp.asarray(self.embedding_scale, x.dtype)
        if self.position == "learned":
            if length > self.max_length:
                raise ValueError(f"sequences may have {self.max_length} tokens; got {length}. Raise max_length.")
            places = jnp.arange(length) + (0 if cache is None else cache.length)
            x = x + nn.Embed(self.max_length, self.width, dtype=self.dtype)(places)[None]
        x, cache = self._blocks(x, cache)
        x = norm_of(self)(x)
        logits = embed.attend(x) if self.tied else nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype)(x)
        if cache is None:
            return logits
        fits = cache.length <= cache.keys.shape[2]
        return jnp.where(fits, logits, jnp.nan), cache

    def _blocks(self, x: Array, cache: Cache | None) -> tuple[Array, Cache | None]:
        """The stream after all blocks, and the cache with its tokens."""
        make: dict[str, Any] = {name: getattr(self, name) for name in _OF_BLOCKS}
        make["rotary"] = self.position == "rotary"
        windows = self.windows or (None,) * self.depth
        if self.scan:
            return self._scanned(Block(**make, name="blocks"), x, windows, cache)
        parts: list[tuple[Array, Array]] = []
        for number, window in enumerate(windows):
            mine = None if cache is None else cache._replace(keys=cache.keys[number], values=cache.values[number])
            x = Block(**make)(x, window, mine)
            if cache is not None:
                x, part = x
                parts.append(part)
        if cache is None:
            return x, None
        keys, values = (jnp.stack(part) for part in zip(*parts))
        return x, Cache(keys, values, cache.length + x.shape[1])

    def _scanned(
        self, block: Block, x: Array, windows: tuple[int | None, ...], cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        """As `_blocks`, by one block with stacked weights."""
        same = len(set(windows)) == 1
        longest = jnp.iinfo(jnp.int32).max
        each = None if same else jnp.array([longest if window is None else window for window in windows], jnp.int32)

        def step(block: Block, x: Array, part: Any) -> Any:
            window, keys, values = part
            window = windows[0] if same else window
            return (block(x, window), None) if cache is None else block(x, window, Cache(keys, values, cache.length))

        scanned = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        if cache is None:
            return scanned(block, x, (each, None, None))[0], None
        x, (keys, values) = scanned(block, x, (each, cache.keys, cache.values))
        return x, Cache(keys, values, cache.length + x.shape[1])

    def _empty(self, x: Array, room: int) -> Cache:
        check_whole("room", room, 1)
        shape = (self.depth, x.shape[0], room, self.kv_heads or self.heads, self.head_dim or self.width // self.heads)
        return Cache(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype), jnp.int32(0))
