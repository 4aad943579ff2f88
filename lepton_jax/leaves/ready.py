"""Codes unpacked once, when a model is loaded, instead of whenever it runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import Packed, is_packed, register_packed
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.formats import Format
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.rounding import values_of


@register_packed("qvalue", "scale", "zero_point")
class Ready(Packed):
    """A `QArray` of which every code has an element of its own: as large as a byte each, and nothing to do before a product.

    Args:
      qvalue: the codes, in the dense shape.
      scale: as the `QArray` had it.
      zero_point: likewise.
      format: likewise.
      output_dtype: likewise.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> from lepton_jax.leaves import quantize
      >>> q = quantize(jnp.array([2.9, -7.5]), Uniform(4))
      >>> Ready(q.qvalue, q.scale, q.zero_point, q.format, "float32").unpack().tolist()
      [3.0, -8.0]
    """

    qvalue: Array
    scale: Array
    zero_point: Array
    format: Format
    output_dtype: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.qvalue.shape

    @property
    def dtype(self) -> jnp.dtype:  # type: ignore[override]
        return jnp.dtype(self.output_dtype)

    def unpack(self) -> Array:
        return values_of(self.qvalue, self.scale, self.zero_point, self.format, self.dtype)

    def native(self, path: Path) -> Quantized:
        zero_point = () if self.format.symmetric else self.zero_point
        return Quantized(self.qvalue, self.scale, zero_point, self.format, self.output_dtype, path=path)


@checked
def ready(tree: PyTree) -> PyTree:
    """Return `tree` with the codes of its `QArray` leaves unpacked; other leaves stay.

    Call it once, when a model is loaded to be run by `packed` or `quantize_activations`: packed words are smaller (by half in
    four bits) but are unpacked in every call.

    Args:
      tree: variables.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> from lepton_jax.leaves import quantize
      >>> leaf = ready({"kernel": quantize(jnp.array([[2.9, -7.5]]), Uniform(4))})["kernel"]
      >>> leaf.qvalue.tolist(), leaf.unpack().tolist()
      ([[3, -8]], [[3.0, -8.0]])
    """

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, QArray):
            return leaf
        return Ready(leaf.qvalue, leaf.scale, leaf.zero_point, leaf.format, leaf.output_dtype)

    return jax.tree.map(made, tree, is_leaf=is_packed)
