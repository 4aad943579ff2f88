"""Wanda: weights and activations."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.moments import second_moments
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.criteria.base import Gathered, wide
from lepton_jax.pruning.masks import top


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanda(Gathered):
    """Score a weight by its size and what it is multiplied by: ``|w_ij| ||x_i||_2``.

    `x_i` is the layer's input feature i over all rows (examples and positions) of the calibration batches. Dense kernels
    (inputs, outputs) of any rank, and convolutions as dense layers on patches: each kernel entry has the norm of the inputs
    that it meets, padding as zeros. Each matrix that a leaf stacks (layers of a scan, groups, experts) is scored by itself.
    Computed once, in `init_all`, from the layers' inputs in the unpruned model.

    Args:
      apply: ``apply(params, *inputs)`` on the tree that is pruned, in evaluation mode. Whatever else the model holds (batch
        statistics) is closed over.
      batches: calibration batches, each one array or a tuple of inputs; streamed.
      compare: "output": weights compete with those of the same output, as in the paper: a score is then the rank among them, in
        [0, 1], so that one threshold for the leaf removes the same fraction of every output (exactly, if sparsity * inputs is
        whole; else to within one). For ``scope="layer"``. "leaf": the product itself.

    Raises:
      ValueError: in `init_all`, for selected leaves that are no weights of dots or convolutions.

    Example:
      >>> params = {"w": jnp.array([[1.0, 2.0], [-3.0, 0.5]])}
      >>> criterion = Wanda(apply=lambda p, x: x @ p["w"], batches=[jnp.array([[3.0, 1.0], [4.0, 0.0]])], compare="leaf")
      >>> criterion.score_all(params, criterion.init_all(params, params), params)["w"].tolist()
      [[5.0, 10.0], [3.0, 0.5]]

    Source: Sun, Liu, Bair, Kolter 2024, "A simple and effective pruning approach for large language models", equation 1.
    Deviation: the norms are all of the dense model; the paper recomputes them layer by layer as it prunes.
    """

    apply: Apply = dataclasses.field(repr=False)
    batches: Iterable[Any] = dataclasses.field(repr=False)
    compare: Literal["output", "leaf"] = "output"

    def __post_init__(self) -> None:
        if self.compare not in ("output", "leaf"):
            raise ValueError(f"Wanda: compare must be 'output' or 'leaf'; got {self.compare!r}.")

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        found = {}
        for path, moments in second_moments(
            self.apply, params, self.batches, lambda path, leaf: path in weights, diagonal=True
        ):
            matrix = wide(moments.layout.matrix(weights[path]))
            scores = jnp.abs(matrix) * jnp.sqrt(moments.second)[..., None].astype(matrix.dtype)
            found[path] = moments.layout.leaf(ranks(scores) if self.compare == "output" else scores)
        return {path: found[path] for path in weights}


def ranks(scores: Array) -> Array:
    """Return the rank of every score in its column (the last axis but one), from 0 for the lowest to 1.

    Of equal ones, the first ranks highest.

    Example:
      >>> ranks(jnp.array([[5.0, 1.0], [3.0, 1.0], [7.0, 0.0]])).tolist()
      [[0.5, 1.0], [0.0, 0.5], [1.0, 0.0]]
    """
    down = jnp.argsort(jnp.argsort(-scores, axis=-2, stable=True), axis=-2)
    last = max(scores.shape[-2] - 1, 1)
    return (last - down).astype(scores.dtype) / last


@checked
def wanda_masks(weight: Array, norms: Array, sparsity: float) -> Array:
    """Return the mask of one layer by ``|w_ij| ||x_i||_2``, with the same number kept in every output.

    Args:
      weight: (inputs, outputs).
      norms: (inputs,), of the input features.
      sparsity: fraction removed of each output's weights.

    Returns:
      boolean mask, (inputs, outputs), ``keep_count(inputs, sparsity)`` True in every column; ties go to the first inputs.

    Example:
      >>> wanda_masks(jnp.array([[1.0, 2.0], [-3.0, 0.5]]), jnp.array([5.0, 1.0]), 0.5).tolist()
      [[True, True], [False, False]]

    Source: Sun, Liu, Bair, Kolter 2024, algorithm 1.
    """
    scores = jnp.abs(wide(weight)) * wide(norms)[:, None]
    return jax.vmap(lambda column: top(column, sparsity), in_axes=1, out_axes=1)(scores)
