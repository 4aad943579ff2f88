"""DoRA: train the direction of fixed weights by a low-rank correction, and their magnitude by itself."""

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.errors import check_whole
from lepton_jax.core.transform import Transform, hold, named
from lepton_jax.core.typing import Array, PyTree, Select
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.adapted import Directed
from lepton_jax.lowrank.adapters import AdapterState, check_settings, put_away, shown, split, start, trained_leaves
from lepton_jax.lowrank.svd import Svd


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

    The norm is that of each output's weights (every index of the last axis); m begins as the norm of W, v at zero. The weights
    lie in the transform's state, and where other leaves are, see `lora`. The packed form is dense: a scale of each output
    does not fit into factors and a fixed weight.

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
    check_whole("dora: rank", rank, 1)
    check_settings("dora", scale, key)
    method = Svd(stacked=stacked)

    def norms(weight: Array) -> Array:
        return jnp.sqrt(jnp.sum(method.matrix(weight) ** 2, axis=-2, keepdims=True))

    def init(params: PyTree) -> tuple[PyTree, AdapterState]:
        weights, held = split("dora", params, rank, select, train, method)
        corrections = start(key, weights, rank, method)
        trained = {
            path: Directed(leaf.u, leaf.v, norms(weights[path]).astype(leaf.u.dtype), leaf.shape)
            for path, leaf in corrections.items()
        }
        return put_away(params, trained, held), AdapterState(dict(weights), held)

    @jax.jit  # compiled whole wherever it runs, so that sums of squares round alike, under jit and outside
    def turned(base: Array, leaf: Directed) -> Array:
        moved = Adapted(base, LowRank(leaf.u * scale, leaf.v, leaf.shape)).unpack()
        norm = norms(jax.lax.stop_gradient(moved)) if constant_norm else norms(moved)
        # An output whose weights are all zero has no direction.
        ratio = jnp.where(norm > 0, leaf.magnitude / jnp.where(norm > 0, norm, 1), 1)
        return (method.matrix(moved) * ratio).reshape(base.shape).astype(base.dtype)

    def view(params: PyTree, state: AdapterState) -> PyTree:
        leaves = trained_leaves(params, state)
        return shown(params, state, {path: turned(base, leaves[path]) for path, base in state.base.items()})

    return Transform(init, view, hold)
