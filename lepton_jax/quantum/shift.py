"""Gradients as a quantum computer can measure them: from the circuit itself, at other angles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array


@checked
def parameter_shift(function: Callable[..., Array], angles: Array) -> Array:
    """Return the derivatives of an expectation by the angles of its gates.

    ``df / da_k = (f(a + pi/2 e_k) - f(a - pi/2 e_k)) / 2``, exact where each angle turns one gate ``exp(-i a P / 2)`` with
    ``P**2 = 1``, as in `circuit`; not for inputs, which turn a gate a layer, nor for what is computed of expectations.

    Args:
      function: of the angles; traceable.
      angles: floating, of any shape.

    Returns:
      The shape of ``function(angles)``, then that of the angles, as `jax.jacobian` has it.

    Example:
      >>> parameter_shift(lambda a: jnp.cos(a).sum(), jnp.array([jnp.pi / 6, jnp.pi / 2])).round(3).tolist()  # -sin
      [-0.5, -1.0]

    Source: K. Mitarai et al., Quantum circuit learning, 2018, equation 8; M. Schuld et al., Evaluating analytic gradients on
    quantum hardware, 2019.
    """
    size = angles.size
    shifts = (jnp.eye(size, dtype=angles.dtype) * (jnp.pi / 2)).reshape(size, *angles.shape)
    slopes = jax.lax.map(lambda shift: (function(angles + shift) - function(angles - shift)) / 2, shifts)
    return jnp.moveaxis(slopes, 0, -1).reshape(*slopes.shape[1:], *angles.shape)
