"""The one straight-through helper."""

import jax

from lepton_jax.core.typing import Array


@jax.custom_jvp
def straight_through(x: Array, y: Array) -> Array:
    """Return `y`, with the derivative of `x`: ``d out = dx``.

    The forward value is `y` bit for bit, which ``x + stop_gradient(y - x)`` is not.

    Args:
      x: the value that gets the gradient.
      y: the value that is used; same shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> jax.grad(lambda w: straight_through(w, jnp.round(w)) ** 2)(1.25)
      Array(2., dtype=float32, weak_type=True)

    Source: Bengio, Leonard, Courville 2013, "Estimating or propagating gradients through stochastic neurons".
    """
    return y


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]
