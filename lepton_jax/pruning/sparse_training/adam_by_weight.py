"""Adam that counts each weight's own steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import PyTree


class AdamByWeightState(NamedTuple):
    """State of `scale_by_adam_by_weight`.

    Attributes:
      count: int32, of the parameters' shapes; steps that each weight has taken since its first gradient that is not zero.
      mu: mean of the gradient, of the parameters' shapes and dtypes.
      nu: mean of its square.
    """

    count: PyTree
    mu: PyTree
    nu: PyTree


@checked
def scale_by_adam_by_weight(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Scale gradients as Adam does, with the bias corrections of each weight's own age.

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, ``step = (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)``, where k
    counts the steps of the weight since its first gradient that is not zero, not those of the run. Where the two are equal, so
    is the result. Under `masked_moments` a weight that grows starts at k = 1: its first step is one rate long, as at the start
    of a run. With the run's count it would be ``(1 - b1) / sqrt(1 - b2)`` = 3.2 rates, and some six for dozens of steps.

    Args:
      b1, b2: decay of the two means, [0, 1).
      eps: added to the denominator.

    Raises:
      ValueError: for a decay outside [0, 1), or a negative eps.

    Example:
      >>> from lepton_jax.pruning.sparse_training import masked_moments
      >>> tx = masked_moments(optax.chain(scale_by_adam_by_weight(), optax.scale_by_learning_rate(0.01)))

    Source: Kingma and Ba 2015, "Adam", algorithm 1, weight by weight. The count of its own is ours.
    """
    with collect("scale_by_adam_by_weight") as problems:
        problems.extend(f"{name} must be in [0, 1); got {b}" for name, b in (("b1", b1), ("b2", b2)) if not 0 <= b < 1)
        if not eps >= 0:
            problems.append(f"eps must not be negative; got {eps}")

    def init(params: PyTree) -> AdamByWeightState:
        count = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.int32), params)
        return AdamByWeightState(count, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, AdamByWeightState]:
        del params
        count = jax.tree.map(lambda k, g: k + ((k > 0) | (g != 0)), state.count, updates)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)

        def step(m: jax.Array, v: jax.Array, k: jax.Array) -> jax.Array:
            k = jnp.maximum(k, 1)  # no gradient yet: the step is zero
            return (m / (1 - b1**k)) / (jnp.sqrt(v / (1 - b2**k)) + eps)

        return jax.tree.map(step, mu, nu, count), AdamByWeightState(count, mu, nu)

    return optax.GradientTransformation(init, update)
