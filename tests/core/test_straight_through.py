"""The straight-through helper."""

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.straight_through import straight_through


def test_value_and_gradient() -> None:
    x, y = jnp.array([1e8, -0.3, 2.5]), jnp.array([1.0, -0.0, jnp.inf])
    assert np.asarray(straight_through(x, y)).tobytes() == np.asarray(y).tobytes()
    assert jax.grad(lambda w: jnp.sum(straight_through(w, jnp.round(w) * jnp.nan) * jnp.arange(3.0)))(x).tolist() == [0, 1, 2]


def test_no_gradient_to_the_value_and_forward_mode() -> None:
    x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    assert jax.grad(lambda y: jnp.sum(straight_through(x, y)))(y).tolist() == [0.0, 0.0]
    value, tangent = jax.jvp(lambda w: straight_through(w, jnp.sign(w)), (x,), (y,))
    assert (value.tolist(), tangent.tolist()) == ([1.0, 1.0], [3.0, 4.0])
