"""RigL: rewire towards the largest gradients."""

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Schedule, Select
from lepton_jax.pruning.allocation import Allocation, erk
from lepton_jax.pruning.sparse_training.rewire import exchange_schedule, rewiring


def _steepest(grad: Array, key: Array) -> Array:
    del key
    return jnp.abs(grad)


@checked
@named
def rigl(
    sparsity: float,
    key: Array,
    *,
    end: int,
    interval: int = 100,
    fraction: float | Schedule = 0.3,
    allocation: Allocation = erk,
    select: Select = paths.matrices,
) -> Transform:
    """Train a sparse network from random masks, and move weights to where the gradient is largest.

    Every `interval` steps up to `end`, in each leaf, ``k = f(t) * kept`` weights of least ``|w|`` are dropped, and the k
    of largest ``|dL/dw|`` among all others grow, from zero; what was just dropped may grow again, and then keeps its value;
    ``f(t) = fraction / 2 * (1 + cos(pi * t / end))``. The view gives
    pruned weights the gradient of the zeros that stand for them; train with ``masked_moments(tx)``, so that the optimiser
    does not gather it. The count of every leaf stays what it is at the start, ``n - round(s * n)``.

    Args:
      sparsity: fraction of the selected weights removed, [0, 1).
      key: a typed random key; for the first masks.
      end: the step from which the masks stay; the paper takes 3/4 of the run.
      interval: steps between two updates.
      fraction: of the kept weights, exchanged at the start (decays by the cosine), or a schedule of it.
      allocation: gives each leaf its sparsity.
      select: which leaves; by default those with two axes or more, so biases stay dense.

    Raises:
      ValueError: for a sparsity outside [0, 1), an end or interval below 1, or a selector that matches nothing.
      TypeError: for a key that is no typed key.

    Example:
      >>> import jax
      >>> transform = rigl(0.5, jax.random.key(0), end=100, interval=10)
      >>> params, state = transform.init({"kernel": jnp.ones((4, 4))})
      >>> params, state = transform.update(params, state, {"kernel": jnp.ones((4, 4))}, 10)
      >>> int(state.masks["kernel"].sum())
      8

    Source: Evci et al. 2020, "Rigging the lottery: making all tickets winners", section 3 and algorithm 1. Deviations: the k
    is rounded, not cut off; what is dropped and grown in one update keeps its value, as in their code; the optimiser's step
    is taken before an update too (there the update takes its place); no update at step 0.
    """
    return rewiring(
        "rigl",
        _steepest,
        sparsity,
        key,
        fraction=exchange_schedule("rigl", fraction, end, decay=True),
        end=end,
        interval=interval,
        allocation=allocation,
        select=select,
        gradient="straight_through",
    )
