"""What a published decoder's config.json says, as the settings of a `Transformer`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lepton_jax.core.errors import ArtifactError, Problems, collect
from lepton_jax.core.foreign_text import shown
from lepton_jax.interchange.rope_config import rope_of
from lepton_jax.models.transformer import Transformer

_LARGEST, _DEEPEST = (1 << 31) - 1, 1 << 12
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
_ATTENTION, _PAIR = ("query", "key", "value", "out"), ("gate", "up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What is common to the models of one `model_type`, and what their config leaves out."""

    head_dim: int | None = None
    kv_heads: int | None = None
    activation: str = "silu"
    tied: bool = False
    one_more: bool = False
    """Whether norms multiply by 1 + scale, and embeddings by the root of the width."""
    head_norm: bool = False
    biases: tuple[str, ...] = ()
    """Those that are there whatever the config says."""
    attention_bias: bool = False
    """Whether the config may ask for biases of attention."""
    mlp_bias: bool = False
    window: int | None = None
    """Of a config that does not mention it; only families that read `sliding_window` have one."""
    by_layer: bool = False
    """Whether each layer has a window or not."""


FAMILIES = {
    "llama": Family(attention_bias=True, mlp_bias=True),
    "mistral": Family(kv_heads=8, window=4096),
    "qwen2": Family(kv_heads=32, biases=("query", "key", "value"), by_layer=True),
    "qwen3": Family(kv_heads=32, head_dim=128, head_norm=True, attention_bias=True, by_layer=True),
    "gemma": Family(kv_heads=16, head_dim=256, activation="gelu_pytorch_tanh", tied=True, one_more=True, attention_bias=True),
}


def transformer_of(config: Mapping[str, Any], where: str, scan: bool = False) -> Transformer:
    """Return the module that a config describes.

    Args:
      config: the object of config.json.
      where: what it is, for the message.
      scan: as in `Transformer`.

    Raises:
      ArtifactError: for another kind of model, or settings that are missing, out of range or not known; names all of them.

    Example:
      >>> sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
      >>> transformer_of({"model_type": "llama", **sizes}, "config.json").biases
      ()
      >>> transformer_of({"model_type": "gemma2", **sizes}, "config.json")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: config.json: decoders of the types llama, mistral, qwen2, qwen3, gemma are read; got
      gemma2. Export another as ONNX.

    Source: the names and defaults are those of the library transformers.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        got = shown(kind, 40)
        raise ArtifactError(
            f"{where}: decoders of the types {', '.join(FAMILIES)} are read; got {got}. Export another as ONNX."
        )
    family = FAMILIES[kind]
    with collect(f"{where} describes no {kind} decoder that is read", ArtifactError) as problems:
        values = _Reader(config, problems)
        heads = values.whole("num_attention_heads")
        width, depth = values.whole("hidden_size"), values.whole("num_hidden_layers", most=_DEEPEST)
        head_dim = values.whole("head_dim", family.head_dim or max(width // heads, 1))
        if "head_dim" not in config and family.head_dim is None and width % heads:
            problems.append(f"hidden_size: {width} is no multiple of num_attention_heads, {heads}, and there is no head_dim")
        kv_heads = values.whole("num_key_value_heads", family.kv_heads or heads)
        if heads % kv_heads:
            problems.append(f"num_key_value_heads: {kv_heads} does not divide num_attention_heads, {heads}")
        if head_dim % 2:
            problems.append(f"head_dim: {head_dim} is odd, which rotary positions do not allow")
        module: dict[str, Any] = {
            "vocabulary": values.whole("vocab_size"),
            "mlp": values.whole("intermediate_size"),
            "max_length": values.whole("max_position_embeddings", 2048),
            "epsilon": values.positive("rms_norm_eps", 1e-6),
            "tied": values.flag("tie_word_embeddings", family.tied),
            "activation": _activation(config, family, problems),
            "rope": rope_of(config, problems),
            "biases": _biases(values, family),
            "windows": _windows(values, family, depth),
        }
        _refuse(config, problems)
    return Transformer(
        **module,
        width=width,
        depth=depth,
        heads=heads,
        head_dim=head_dim,
        kv_heads=kv_heads,
        position="rotary",
        norm="rms",
        norm_offset=float(family.one_more),
        embedding_scale=math.sqrt(width) if family.one_more else 1.0,
        head_norm=family.head_norm,
        gated=True,
        scan=scan,
    )


class _Reader:
    """The values of a config; what is wrong goes to the problems, and something harmless is returned in its place."""

    def __init__(self, config: Mapping[str, Any], problems: Problems) -> None:
        self.config, self.problems = config, problems

    def whole(self, name: str, default: int | None = None, most: int = _LARGEST) -> int:
        value = self.config.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= most:
            self.problems.append(f"{name}: must be a whole number from 1 to {most}; got {shown(value, 40)}")
            return 1
        return value

    def positive(self, name: str, default: float) -> float:
        value = self.config.get(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            self.problems.append(f"{name}: must be a positive number; got {shown(value, 40)}")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name, default)
        if not isinstance(value, bool):
            self.problems.append(f"{name}: must be true or false; got {shown(value, 40)}")
            return default
        return value


def _activation(config: Mapping[str, Any], family: Family, problems: Problems) -> str:
    name = config.get("hidden_activation") or config.get("hidden_act", family.activation)
    if family.one_more and name == "gelu":  # what the first files say, and do not mean
        name = "gelu_pytorch_tanh"
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        problems.append(f"hidden_act: must be one of {', '.join(_ACTIVATIONS)}; got {shown(name, 40)}")
        return "silu"
    return _ACTIVATIONS[name]


def _biases(values: _Reader, family: Family) -> tuple[str, ...]:
    attention = _ATTENTION if family.attention_bias and values.flag("attention_bias", False) else family.biases
    return attention + (_PAIR if family.mlp_bias and values.flag("mlp_bias", False) else ())


def _windows(values: _Reader, family: Family, depth: int) -> tuple[int | None, ...] | None:
    """How many positions each layer looks at; None: all of them."""
    config, types = values.config, values.config.get("layer_types")
    if family.window is not None:  # the same in every layer
        window = None if config.get("sliding_window", 0) is None else values.whole("sliding_window", family.window)
        return None if window is None else (window,) * depth
    if not family.by_layer or not values.flag("use_sliding_window", False) or config.get("sliding_window", 0) is None:
        return None
    window, first = values.whole("sliding_window", 4096), config.get("max_window_layers", 28)
    if types is None and type(first) is int:
        return tuple(window if layer >= first else None for layer in range(depth))
    named = {"full_attention": None, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != depth or not all(isinstance(one, str) and one in named for one in types):
        values.problems.append(
            f"layer_types: must be one of {', '.join(named)} for each of {depth} layers; got {shown(types, 80)}"
        )
        return None
    return tuple(named[one] for one in types)


def _refuse(config: Mapping[str, Any], problems: Problems) -> None:
    """Name what would make other numbers and is not values."""
    if config.get("quantization_config") is not None:
        problems.append("quantization_config: quantized weights are not read; give the folder of the float model")
    if config.get("use_bidirectional_attention"):
        problems.append("use_bidirectional_attention: only causal attention is read")
