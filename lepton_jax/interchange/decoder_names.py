"""Under which names a published decoder's folder holds a `Transformer`'s weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lepton_jax.core.typing import Path
from lepton_jax.models.transformer import Transformer

_OF_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
_OF_PAIR = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class Place(NamedTuple):
    """Where a tensor of the folder goes.

    Attributes:
      path: of the leaf, under "params"; of a layer, without its block.
      shape: of the tensor in the folder.
      turned: whether the leaf is the tensor transposed.
      layer: which block; None: none.
    """

    path: Path
    shape: tuple[int, ...]
    turned: bool = False
    layer: int | None = None


def places(module: Transformer) -> dict[str, Place]:
    """Return the place of every tensor, by its name in the folder.

    Example:
      >>> small = Transformer(vocabulary=9, depth=1, width=8, heads=2, mlp=6, norm="rms", gated=True, biases=())
      >>> places(small)["model.layers.0.mlp.gate_proj.weight"]
      Place(path='gate/kernel', shape=(6, 8), turned=True, layer=0)
      >>> places(small)["lm_head.weight"].path
      'Dense_0/kernel'
    """
    width, vocabulary = module.width, module.vocabulary
    found = {"model.embed_tokens.weight": Place("Embed_0/embedding", (vocabulary, width))}
    for layer in range(module.depth):
        found |= {f"model.layers.{layer}.{name}": place._replace(layer=layer) for name, place in _of_block(module)}
    found["model.norm.weight"] = Place("RMSNorm_0/scale", (width,))
    if not module.tied:
        found["lm_head.weight"] = Place("Dense_0/kernel", (vocabulary, width), turned=True)
    return found


def _of_block(module: Transformer) -> Iterator[tuple[str, Place]]:
    width, size = module.width, module.head_dim or module.width // module.heads
    queries, keys = module.heads * size, (module.kv_heads or module.heads) * size
    shapes = {"query": (queries, width), "key": (keys, width), "value": (keys, width), "out": (width, queries)}
    shapes |= {"gate": (module.mlp, width), "up": (module.mlp, width), "down": (width, module.mlp)}
    yield "input_layernorm.weight", Place("RMSNorm_0/scale", (width,))
    yield "post_attention_layernorm.weight", Place("RMSNorm_1/scale", (width,))
    for part, names in (("self_attn", _OF_ATTENTION), ("mlp", _OF_PAIR)):
        for layer, name in names.items():
            yield f"{part}.{name}.weight", Place(f"{layer}/kernel", shapes[layer], turned=True)
            if layer in module.biases:
                yield f"{part}.{name}.bias", Place(f"{layer}/bias", shapes[layer][:1])
    if module.head_norm:
        for name in ("q_norm", "k_norm"):
            yield f"self_attn.{name}.weight", Place(f"{'query' if name == 'q_norm' else 'key'}_norm/scale", (size,))
