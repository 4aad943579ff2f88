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


def slope_where(passes: Array, x: Array) -> Array:
    """Return `x`, with its derivative only where it `passes`, else 0: what a clipping has.

    Args:
      passes: boolean, broadcasts against x.
      x: any array.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([0.5, 3.0])
      >>> jax.grad(lambda x: jnp.sum(slope_where(x < 1, x) ** 2))(x).tolist()
      [1.0, 0.0]
    """
    return jax.lax.select(jax.numpy.broadcast_to(passes, x.shape), x, jax.lax.stop_gradient(x))


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]
