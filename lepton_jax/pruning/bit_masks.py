"""Masks kept as bits: an eighth of the bytes, the same training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import register_packed
from lepton_jax.core.transform import State, Transform, named, wrapper
from lepton_jax.core.transform.wrapper import Moved, Seen
from lepton_jax.core.typing import Array, PyTree, Step


@register_packed("words")
class MaskBits:
    """A boolean array, eight to a byte along its last axis.

    Args:
      words: uint8 [..., ceil(n / 8)], little end first.
      length: n, of the last axis.

    Example:
      >>> MaskBits.packed(jnp.array([True, False, True])).words.tolist()
      [5]
    """

    words: Array
    length: int

    @classmethod
    def packed(cls, mask: Array) -> MaskBits:
        """Pack a mask of one axis or more."""
        return cls(jnp.packbits(mask, axis=-1, bitorder="little"), mask.shape[-1])

    def unpack(self) -> Array:
        """Return the mask."""
        return jnp.unpackbits(self.words, axis=-1, count=self.length, bitorder="little").astype(bool)


@checked
@named
def bit_masks(transform: Transform) -> Transform:
    """Keep the masks of a transform, and all else in its state that is boolean, as bits; the view unpacks them.

    Training, views and packs are the transform's own, bit for bit: 1 bit a weight between steps in place of 8.
    `lepton_jax.pruning.sparse_training.masks_of` gives the masks as ever. Under a placement the bits follow their weight along
    all axes but the last, along which eight share a byte.

    Args:
      transform: any with masks: `prune`, `rigl`, chains of them.

    Example:
      >>> from lepton_jax import prune
      >>> transform = bit_masks(prune(0.5))
      >>> params, state = transform.init({"kernel": jnp.arange(16.0).reshape(2, 8)})
      >>> state.masks["kernel"].words.tolist(), int((transform.view(params, state)["kernel"] == 0).sum())
      ([[0], [255]], 8)
    """

    def init(params: PyTree) -> tuple[PyTree, State]:
        params, state = transform.init(params)
        return params, to_bits(state)

    def see(part: Seen, params: PyTree, state: State) -> PyTree:
        return getattr(transform, part)(params, from_bits(state))

    def move(part: Moved, params: PyTree, state: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        params, state = getattr(transform, part)(params, from_bits(state), grads, step)
        return params, to_bits(state)

    return wrapper(init, see, move)


def to_bits(state: State) -> State:
    """Return a state with its boolean arrays as bits.

    Example:
      >>> to_bits({"a": jnp.array([True, True])})["a"].words.tolist()
      [3]
    """

    def bits(leaf: Any) -> Any:
        boolean = hasattr(leaf, "dtype") and leaf.dtype.name == "bool"
        return MaskBits.packed(leaf) if boolean and leaf.ndim else leaf

    return jax.tree.map(bits, state)


def from_bits(state: State) -> State:
    """Undo `to_bits`.

    Example:
      >>> from_bits(to_bits({"a": jnp.array([True, False])}))["a"].tolist()
      [True, False]
    """
    return jax.tree.map(lambda leaf: leaf.unpack() if is_bits(leaf) else leaf, state, is_leaf=is_bits)


def is_bits(leaf: Any) -> bool:
    """Whether it is a `MaskBits`.

    Example:
      >>> is_bits(jnp.array([True]))
      False
    """
    return isinstance(leaf, MaskBits)
