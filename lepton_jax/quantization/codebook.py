"""Trained k-means codebooks (Deep Compression's trained quantization)."""

from typing import NamedTuple

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.finite import check_finite
from lepton_jax.core.packed import is_coded, register_packed
from lepton_jax.core.transform import Transform, hold, named
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.formats.codebook import Codebook, k_means, look_up
from lepton_jax.leaves.codebook import coded


@register_packed("centroids")
class Centroids:
    """The trainable parameter that stands in a weight's place: its codebook. The codes are in the transform's state.

    Args:
      centroids: shape (k,), float32.
      output_dtype: the weight's dtype.

    Example:
      >>> from lepton_jax import fake_quant
      >>> params, state = fake_quant(Codebook(bits=1)).init({"kernel": jnp.array([[1.0, -1.0]])})
      >>> params["kernel"].centroids.tolist()
      [-1.0, 1.0]
    """

    centroids: Array
    output_dtype: str


class CodebookState(NamedTuple):
    """State of a trained codebook: codes by path, uint8, of the weights' shapes."""

    codes: dict[Path, Array]


@named
def train_codebook(fmt: Codebook, select: Select) -> Transform:
    """Exchange each selected weight for a trainable codebook and fixed codes; see `fake_quant`."""
    paths.check_select("fake_quant: select", select)

    def init(params: PyTree) -> tuple[PyTree, CodebookState]:
        weights = paths.select(params, select)
        check_finite("fake_quant", weights)
        clusters = {path: k_means(weight.astype(jnp.float32), fmt.centroids) for path, weight in weights.items()}
        tables = {path: Centroids(table, weights[path].dtype.name) for path, (table, _) in clusters.items()}
        return paths.replace(params, tables), CodebookState({path: codes for path, (_, codes) in clusters.items()})

    def tables(params: PyTree, state: CodebookState) -> dict[Path, Centroids]:
        leaves = paths.flatten(params, is_leaf)
        return {path: leaves[path] for path in state.codes}

    def is_leaf(node: object) -> bool:
        return isinstance(node, Centroids) or is_coded(node)

    def view(params: PyTree, state: CodebookState) -> PyTree:
        def seen(table: Centroids, codes: Array) -> Array:
            return look_up(table.centroids, codes).astype(table.output_dtype)

        return paths.replace(params, {p: seen(t, state.codes[p]) for p, t in tables(params, state).items()}, is_leaf)

    def pack(params: PyTree, state: CodebookState) -> PyTree:
        found = tables(params, state).items()
        leaves = {p: coded(fmt, table.centroids, state.codes[p], table.output_dtype) for p, table in found}
        return paths.replace(params, leaves, is_leaf)

    return Transform(init, view, hold, pack)
