"""Optimisers whose moments follow the masks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree
from lepton_jax.pruning.hide import masked, masks_of


@checked
def masked_moments(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keep an optimiser from gathering moments of pruned weights, so that a weight that grows starts with fresh ones.

    Before `tx` takes its step, gradient and parameter are zero and every moment is as `tx` initialises it (zero, for adam and
    momentum) where the masks hide a weight; afterwards the weight's update is zero. So decay does not move it, its dense
    gradient (`rigl`) is not gathered, and once a transform's update shows it again, it starts from moments of its own.

    `lepton_jax.training.make_train_step` hands over the transform's state; other loops pass it:
    ``tx.update(grads, opt_state, params, tstate=tstate)``. For transforms that set pruned masters to zero: `rigl`, `set_`,
    `ac_dc`, `fixed_masks`, ``prune(gradient="masked")``. Not for those whose pruned masters live on (`dynamic_surgery`,
    ``gradient="straight_through"``): it would hold them where they are.

    A moment is any part of the optimiser's state that is a copy of the parameters' tree (`optax.tree_utils.tree_map_params`)
    and has the weight's shape; factored ones (adafactor) and counts are left. The count that corrects adam's bias is one for
    the whole tree and goes on, so that a grown weight's first step is ``(1 - b1) / sqrt(1 - b2)`` rates long (3.2 at adam's
    defaults), where it would be one at step 0, and the next ones longer still; `scale_by_adam_by_weight` counts for each
    weight.

    Args:
      tx: any optax optimiser; `optax.chain`, `optax.partition` and `optax.masked` inside it too.

    Returns:
      An optimiser with the same state, whose update takes ``tstate=``.

    Raises:
      TypeError: from the update, if it is given no `tstate`.

    Example:
      >>> from lepton_jax.pruning.sparse_training import fixed_masks
      >>> params, tstate = fixed_masks({"w": jnp.array([True, False])}).init({"w": jnp.ones(2)})
      >>> tx = masked_moments(optax.sgd(1.0, momentum=0.5))
      >>> updates, opt_state = tx.update({"w": jnp.ones(2)}, tx.init(params), params, tstate=tstate)
      >>> updates["w"].tolist(), opt_state[0].trace["w"].tolist()
      ([-1.0, 0.0], [1.0, 0.0])

    Source: Evci et al. 2020, "Rigging the lottery", whose code sets the momentum of new connections to zero.
    """
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, tstate: Any = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        if tstate is None:
            raise TypeError(
                "masked_moments: the update needs the transform's state: tx.update(grads, opt_state, params, tstate=tstate). "
                "make_train_step passes it."
            )
        masks = masks_of(tstate)
        shown = None if params is None else masked(params, masks)
        updates = masked(updates, masks)
        state = _fresh_where_masked(inner, state, shown, updates, masks)
        steps, state = inner.update(updates, state, shown, tstate=tstate, **extra)
        return masked(steps, masks), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _fresh_where_masked(tx: Any, state: Any, params: PyTree | None, like: PyTree, masks: dict[str, jax.Array]) -> Any:
    """Return the state with the values of ``tx.init`` where a mask is False."""
    every = jax.tree.map(lambda leaf: jnp.ones((), bool), like)  # a scalar stands for a leaf without a mask
    every = paths.replace(every, masks)

    def mask_for(moment: Any, mask: Any) -> Any:
        if isinstance(moment, optax.MaskedNode):
            return moment
        return mask if mask.ndim and moment.shape == mask.shape else True

    where = optax.tree_utils.tree_map_params(
        tx, mask_for, state, every, transform_non_params=lambda leaf: True, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    fresh = tx.init(jax.tree.map(jnp.zeros_like, like) if params is None else params)
    return jax.tree.map(lambda mask, old, new: old if mask is True else jnp.where(mask, old, new), where, state, fresh)
