"""Rotations of one qubit, as matrices of two rows."""

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array


@checked
def rx(angle: Array | float) -> Array:
    """Return ``exp(-i angle X / 2) = [[c, -i s], [-i s, c]]`` with ``c, s = cos, sin(angle / 2)``.

    Args:
      angle: in radians, a scalar.

    Returns:
      complex ``[2, 2]``: complex64, or complex128 of a float64 angle.

    Example:
      >>> rx(0.0).real.tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    c, s = jnp.cos(jnp.asarray(angle) / 2), jnp.sin(jnp.asarray(angle) / 2)
    return jnp.array([[c, -1j * s], [-1j * s, c]])


@checked
def ry(angle: Array | float) -> Array:
    """Return ``exp(-i angle Y / 2) = [[c, -s], [s, c]]``, as `rx`.

    Example:
      >>> jnp.abs(ry(3.141592653589793)).round(3).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    c, s = jnp.cos(jnp.asarray(angle) / 2), jnp.sin(jnp.asarray(angle) / 2)
    return jnp.array([[c, -s], [s, c]]) + 0j


@checked
def rz(angle: Array | float) -> Array:
    """Return ``exp(-i angle Z / 2) = diag(e^{-i angle / 2}, e^{i angle / 2})``, as `rx`.

    Example:
      >>> rz(3.141592653589793).imag.round(3).tolist()
      [[-1.0, 0.0], [0.0, 1.0]]
    """
    half = jnp.asarray(angle) / 2
    return jnp.diag(jnp.stack([jnp.cos(half) - 1j * jnp.sin(half), jnp.cos(half) + 1j * jnp.sin(half)]))


@checked
def rot(angles: Array) -> Array:
    """Return ``RZ(c) RY(b) RZ(a)`` of angles ``[a, b, c]``: any rotation of one qubit.

    Args:
      angles: in radians, ``[3]``.

    Raises:
      ValueError: for another shape.

    Example:
      >>> bool(jnp.allclose(rot(jnp.array([0.0, 0.3, 0.0])), ry(0.3)))
      True
    """
    if angles.shape != (3,):
        raise ValueError(f"rot: angles must have shape (3,); got {angles.shape}. Give one rotation, or use jax.vmap.")
    plus, minus = (angles[0] + angles[2]) / 2, (angles[0] - angles[2]) / 2
    c, s = jnp.cos(angles[1] / 2), jnp.sin(angles[1] / 2)
    return jnp.array(
        [
            [(jnp.cos(plus) - 1j * jnp.sin(plus)) * c, -(jnp.cos(minus) + 1j * jnp.sin(minus)) * s],
            [(jnp.cos(minus) - 1j * jnp.sin(minus)) * s, (jnp.cos(plus) + 1j * jnp.sin(plus)) * c],
        ]
    )
