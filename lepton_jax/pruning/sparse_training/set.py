"""SET: sparse evolutionary training."""

import jax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Schedule, Select
from lepton_jax.pruning.allocation import Allocation, erk
from lepton_jax.pruning.sparse_training.rewire import exchange_schedule, rewiring


def _anywhere(grad: Array, key: Array) -> Array:
    return jax.random.uniform(key, grad.shape)


@checked
@named
def set_(
    sparsity: float,
    key: Array,
    *,
    end: int,
    interval: int = 100,
    fraction: float | Schedule = 0.3,
    allocation: Allocation = erk,
    select: Select = paths.matrices,
) -> Transform:
    """Train a sparse network from random masks, and move weights to random places.

    Every `interval` steps up to `end`, in each leaf, a fraction of the kept weights, those of least ``|w|``, are dropped, and
    as many random ones of all others grow, from zero; what was just dropped may grow again, and then keeps its value. The
    count of every leaf stays what it is at the start, ``n - round(s * n)``. Train with ``masked_moments(tx)``, so that grown
    weights start with fresh moments.

    Args:
      sparsity: fraction of the selected weights removed, [0, 1).
      key: a typed random key, kept in the state; for the first masks and for growth.
      end: the step from which the masks stay.
      interval: steps between two updates.
      fraction: of the kept weights, exchanged at an update; or a schedule of it, e.g.
        ``optax.cosine_decay_schedule(0.3, end)``, which is how RigL's authors compare with it.
      allocation: gives each leaf its sparsity.
      select: which leaves; by default those with two axes or more, so biases stay dense.

    Raises:
      ValueError: for a sparsity outside [0, 1), an end or interval below 1, or a selector that matches nothing.
      TypeError: for a key that is no typed key.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = set_(0.5, jax.random.key(0), end=100, interval=10)
      >>> params, state = transform.init({"kernel": jnp.ones((4, 4))})
      >>> params, state = transform.update(params, state, {"kernel": jnp.zeros((4, 4))}, 10)
      >>> int(state.masks["kernel"].sum())
      8

    Source: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", algorithm 1, zeta = `fraction`. Deviations: least ``|w|``, where the paper drops the smallest positive
    and the largest negative weights by count of their own; new weights start from zero, there from a random value; exact
    counts, where the paper's first masks are drawn weight by weight.
    """
    return rewiring(
        "set_",
        _anywhere,
        sparsity,
        key,
        fraction=exchange_schedule("set_", fraction, end, decay=False),
        end=end,
        interval=interval,
        allocation=allocation,
        select=select,
    )
