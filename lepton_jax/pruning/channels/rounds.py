"""Removing channels in several steps, with training in between."""

from collections.abc import Callable
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.channels.choose import plan
from lepton_jax.pruning.channels.importance import Importance
from lepton_jax.pruning.channels.plan import Plan
from lepton_jax.pruning.criteria import Criterion


@checked
def prune_iteratively(
    apply: Apply,
    variables: PyTree,
    *inputs: Any,
    fraction: float,
    steps: int,
    tune: Callable[[Apply, PyTree], PyTree],
    criterion: Callable[[Apply, PyTree], Importance | Criterion],
    **settings: Any,
) -> tuple[Plan, PyTree]:
    """Cut and tune in turn: every cut is chosen by the tuned, already smaller model.

    The k-th of n cuts leaves ``1 - k/n * fraction`` of the original amount.

    Args:
      apply: ``apply(variables, *inputs, **keywords)``.
      variables: at the original shapes.
      *inputs: example inputs.
      fraction: to be removed in all, in [0, 1).
      steps: how many cuts, 1 or more.
      tune: ``(apply, variables) -> variables``, trains the smaller model.
      criterion: ``(apply, variables) -> importance``, made anew for every cut (gradients of the smaller model).
      **settings: as for `plan`.

    Returns:
      One plan from the original model to the last, and the last variables, tuned.

    Raises:
      ValueError: as `plan` does, or for `steps` below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lepton_jax.pruning.channels import Norm
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.array([[1.0, 4.0, 2.0, 3.0]]), "down": jnp.ones((4, 1))}
      >>> whole, small = prune_iteratively(
      ...     apply,
      ...     variables,
      ...     jnp.ones((1, 1)),
      ...     fraction=0.5,
      ...     steps=2,
      ...     tune=lambda apply, v: v,
      ...     criterion=lambda apply, v: Norm(),
      ... )
      >>> whole.removed["up", 1], small["up"].tolist()
      ((0, 2), [[4.0, 3.0]])

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.4 (prune and retrain iteratively).
    """
    check_fraction("fraction", fraction)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more; got {steps}.")
    whole: Plan | None = None
    small, left = apply, 1.0
    for k in range(1, steps + 1):
        wanted = 1 - k / steps * fraction
        made = plan(small, variables, *inputs, fraction=1 - wanted / left, criterion=criterion(small, variables), **settings)
        variables, left = made.shrink(variables), wanted
        whole = made if whole is None else whole.then(made)
        small = whole.rewrite(apply)
        variables = tune(small, variables)
    assert whole is not None
    return whole, variables
