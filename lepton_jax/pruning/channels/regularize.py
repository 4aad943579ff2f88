"""Before the cut: a penalty that makes whole channels small."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.paths import flatten, floating, matches
from lepton_jax.core.typing import Array, PyTree, Select, Step
from lepton_jax.pruning.channels.groups import Group
from lepton_jax.pruning.channels.plan import Plan


@checked
def channel_norms(group: Group, variables: PyTree, select: Select = floating) -> Array:
    """Return the sum of squares of all slices of every channel, ``||w_c||^2``.

    Args:
      group: of a plan.
      variables: at the original shapes, or ``variables['params']`` if the plan's paths are those.
      select: which leaves count.

    Returns:
      f32[channels]. Differentiable.

    Example:
      >>> from lepton_jax.pruning.channels import plan
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.ones((3, 1))}
      >>> [group] = plan(apply, variables, jnp.ones((1, 1)), fraction=0).groups
      >>> channel_norms(group, variables).tolist()
      [10.0, 2.0, 5.0]
    """
    leaves = flatten(variables)
    total = jnp.zeros((group.size,), jnp.float32)
    for s in group.slices:
        if s.path in leaves and matches(select, s.path, leaves[s.path], leaves):
            leaf = leaves[s.path].astype(jnp.float32)
            squares = jnp.sum(leaf**2, axis=tuple(a for a in range(leaf.ndim) if a != s.axis))
            total += jnp.sum(squares[s.indices], axis=1)
    return total


@checked
@dataclass(frozen=True, kw_only=True)
class GroupSparsity:
    """A penalty on channels, ever stronger, and stronger on those that are small already.

    ``R = strength(step) / 2 * sum_g sum_c gamma_gc ||w_gc||^2`` with
    ``gamma_gc = 2^(alpha (max_c I - I_c) / (max_c I - min_c I))`` and ``I_c = ||w_gc||``, a constant to the gradient.

    Add it to the loss for a while, then plan and cut: the channels that go are small by then.

    Args:
      strength: step -> factor, e.g. a schedule that grows.
      alpha: how much more the least channel of a group is penalised than the largest: ``2^alpha`` times.
      select: which leaves count.

    Example:
      >>> from lepton_jax.pruning.channels import plan
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[0.0], [0.0]])}
      >>> groups = plan(apply, variables, jnp.ones((1, 1)), fraction=0)
      >>> float(GroupSparsity(strength=lambda step: 0.1 * step, alpha=1.0)(groups, variables, 10))
      3.0

    Source: Fang et al. 2023, "DepGraph", equations 4 and 5. Deviation: one strength that grows, as in Wang, Qin, Zhang, Fu
    2021, "Neural pruning via growing regularization", instead of a fixed one.
    """

    strength: Callable[[Step], Array | float]
    alpha: float = 4.0
    select: Select = floating

    def __call__(self, plan: Plan, variables: PyTree, step: Step) -> Array:
        """Return the penalty, an f32 scalar, of variables at the original shapes."""
        total = jnp.zeros((), jnp.float32)
        for group in plan.groups:
            squares = channel_norms(group, variables, self.select)
            sizes = jnp.sqrt(jax.lax.stop_gradient(squares))
            spread = sizes.max() - sizes.min()
            exponent = jnp.where(spread > 0, (sizes.max() - sizes) / jnp.where(spread > 0, spread, 1.0), 0.0)
            total += jnp.sum(2.0 ** (self.alpha * exponent) * squares)
        return jnp.asarray(self.strength(step), jnp.float32) / 2 * total
