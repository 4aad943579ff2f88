"""Soft threshold reparametrisation (STR): thresholds that are trained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.packed import register_packed
from lepton_jax.core.transform import Transform, hold, named
from lepton_jax.core.typing import Array, PyTree, Select
from lepton_jax.pruning.stacked import Stacks


@register_packed("weight", "threshold")
class Thresholded:
    """The trainable parameters that stand in a weight's place: the weight and its threshold before `g`.

    Args:
      weight: the dense weight.
      threshold: the parameter s; a scalar, or one a channel, with the weight's number of axes.

    Example:
      >>> params, _ = soft_threshold().init({"kernel": jnp.ones((2, 3))})
      >>> params["kernel"].weight.shape, params["kernel"].threshold.shape
      ((2, 3), (1, 1))
    """

    weight: Array
    threshold: Array


def shrink(weight: Array, threshold: Array) -> Array:
    """Return ``sign(w) max(|w| - threshold, 0)``, with exact zeros up to the threshold.

    Example:
      >>> shrink(jnp.array([-3.0, 0.5, 2.0]), jnp.array([1.0])).tolist()
      [-2.0, 0.0, 1.0]
    """
    left = jnp.abs(weight) - threshold
    return jnp.where(left > 0, jnp.sign(weight) * left, jnp.zeros((), weight.dtype))


@checked
@named
def soft_threshold(
    *,
    initial: float = -5.0,
    g: Callable[[Array], Array] = jax.nn.sigmoid,
    channel_axis: int | None = None,
    select: Select = paths.matrices,
) -> Transform:
    """Exchange each selected weight for a trainable weight and threshold: ``view = sign(w) max(|w| - g(s), 0)``.

    ``dL/dw = dL/dv 1(|w| > g(s))``, ``dL/ds = -g'(s) sum(dL/dv sign(w) 1(|w| > g(s)))``. Weight decay on s drives the
    sparsity (decay pulls s up to 0, and with it g(s)); how sparse it gets follows from that: `sparsity_of`. Then fix the
    masks reached for a later phase: ``fixed_masks(nonzero_masks(view(params, state)))``. Packs to plain arrays with zeros. In
    a chain, put it before what masks or rounds.

    Args:
      initial: s at the start; the paper's are where g is near zero.
      g: makes a threshold of s; `jax.numpy.exp` for the paper's other choice.
      channel_axis: one threshold for each index of this axis; None: one a leaf, or each weight that it is known to stack.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for a channel axis that a leaf lacks (all paths together), or a selector that matches nothing.

    Example:
      >>> transform = soft_threshold(initial=0.0)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -0.25], [0.5, -2.5]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.5, 0.0], [0.0, -2.0]]

    Source: Kusupati et al. 2020, "Soft threshold weight reparameterization for learnable sparsity", section 3. Deviation: at
    ``|w| = g(s)`` the derivative is 0, as on the pruned side.
    """

    paths.check_select("soft_threshold: select", select)

    def init(params: PyTree) -> tuple[PyTree, tuple[()]]:
        weights = paths.select(params, select)
        check_finite("soft_threshold", weights)
        with collect("soft_threshold: channel_axis must be an axis of every selected leaf") as problems:
            for path, weight in weights.items():
                if channel_axis is not None and not -weight.ndim <= channel_axis < weight.ndim:
                    problems.append(f"{path}: shape {weight.shape} has no axis {channel_axis}")
        stacks = Stacks(select, weights)
        leaves = {path: Thresholded(w, _start(w, stacks.alone(path))) for path, w in weights.items()}
        return paths.replace(params, leaves), ()

    def _start(weight: Array, alone: tuple[int, ...] | None) -> Array:
        shape = [1 if alone is None or axis in alone else size for axis, size in enumerate(weight.shape)]
        if channel_axis is not None:
            shape[channel_axis] = weight.shape[channel_axis]
        return jnp.full(shape, initial, weight.dtype)

    def view(params: PyTree, state: tuple[()]) -> PyTree:
        del state
        return jax.tree.map(lambda leaf: _shown(leaf) if _is_thresholded(leaf) else leaf, params, is_leaf=_is_thresholded)

    def _shown(leaf: Thresholded) -> Array:
        return shrink(leaf.weight, g(leaf.threshold))

    return Transform(init, view, hold)


def _is_thresholded(node: object) -> bool:
    return isinstance(node, Thresholded)
