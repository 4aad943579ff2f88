"""DoRA: train the direction of fixed weights by a low-rank correction, and their magnitude by itself."""

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import Packed, register_packed
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, Select
from lepton_jax.core.weight_axes import axes_of
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.adapters import adapter, corrected
from lepton_jax.lowrank.method import working


@register_packed("u", "v", "magnitude")
class Directed(Packed):
    """What is trained of a weight that is adapted in direction and magnitude; the weight itself lies in the transform's state.

    Args:
      u: shape (..., m, r).
      v: shape (..., r, n).
      magnitude: shape (..., 1, n), the norm of every output's weights; (..., m, 1) where outputs are the rows.
      shape: the dense leaf's.
      axis: of a matrix's two, the one that norms sum over.

    Example:
      >>> Directed(jnp.ones((3, 1)), jnp.ones((1, 2)), jnp.ones((1, 2)), (3, 2)).size
      6
    """

    u: Any
    v: Any
    magnitude: Any
    shape: tuple[int, ...]
    axis: int = -2

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.u.dtype

    def unpack(self) -> Array:
        raise TypeError("Directed: the weight it corrects lies in the transform's state; take transform.view(params, state).")


@checked
@named
def dora(
    rank: int,
    key: Array,
    *,
    scale: float = 1.0,
    constant_norm: bool = True,
    select: Select = paths.matrices,
    train: Select = (),
    stacked: int = 0,
) -> Transform:
    """Train magnitude and direction of each selected weight apart: ``view = m * V / |V|, V = W + scale * u v``.

    The norm is that of each output's weights (every index of the last axis, unless the selector knows better); m begins as the
    norm of W, v at zero. The weights lie in the transform's state, and where other leaves are, see `lora`. The packed form is
    dense: a scale of each output does not fit into factors and a fixed weight.

    Args:
      rank: of the corrections, 1 to the smaller side of every selected weight.
      key: a typed random key, for u.
      scale: alpha / rank of the LoRA paper.
      constant_norm: whether gradients take |V| as a constant, which the paper does to save memory.
      select: which weights are adapted.
      train: other leaves that are trained as they are; by default none.
      stacked: leading axes of weights that stack layers, each with a correction of its own.

    Raises:
      ValueError: for settings out of range, weights that have no such rank, or a pattern that matches nothing.
      TypeError: for a key that is no typed key.

    Example:
      >>> transform = dora(1, jax.random.key(0))
      >>> params, state = transform.init({"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])})
      >>> params["kernel"].magnitude.tolist(), transform.view(params, state)["kernel"].round(6).tolist()
      ([[5.0, 2.0]], [[3.0, 0.0], [4.0, 2.0]])

    Source: Liu et al. 2024, "DoRA: weight-decomposed low-rank adaptation", equation 5; equation 11 for the constant norm.
    """

    def matrix(weight: Array, leaf: LowRank | Directed) -> Array:
        return weight.reshape(*leaf.u.shape[:-1], leaf.v.shape[-1])

    def norms(matrix: Array, axis: int) -> Array:
        return jnp.sqrt(jnp.sum(matrix**2, axis=axis, keepdims=True))

    def begin(weights: dict[Path, Array], corrections: dict[Path, LowRank]) -> tuple[dict[Path, Directed], dict[Path, Array]]:
        trained = {}
        for path, leaf in corrections.items():
            axes = axes_of(select, path, leaf.shape)
            axis = -1 if axes is not None and axes.outputs_first else -2
            size = norms(matrix(working(weights[path]), leaf), axis).astype(leaf.u.dtype)
            trained[path] = Directed(leaf.u, leaf.v, size, leaf.shape, axis)
        return trained, weights

    @jax.jit  # compiled whole wherever it runs, so that sums of squares round alike, under jit and outside
    def turned(base: Array, leaf: Directed) -> Array:
        moved = corrected(base, leaf, scale).unpack()
        whole = matrix(working(moved), leaf)
        norm = norms(jax.lax.stop_gradient(whole) if constant_norm else whole, leaf.axis)
        # An output whose weights are all zero has no direction.
        ratio = jnp.where(norm > 0, leaf.magnitude / jnp.where(norm > 0, norm, 1), 1)
        return (whole * ratio).reshape(base.shape).astype(base.dtype)

    return adapter("dora", rank, key, scale, select, train, stacked, begin=begin, show=turned)
