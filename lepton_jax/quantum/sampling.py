"""Expectations from finitely many measurements."""

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.quantum.state import probabilities, signs


@checked
def sampled_expectations(key: Array, state: Array, *, shots: int) -> Array:
    """Measure all qubits so many times, and return each one's mean of Z.

    Its expectation is that of `expectations`, e; its variance ``(1 - e**2) / shots``. It has no gradient: train by
    expectations, or by `parameter_shift` of sampled ones.

    Args:
      key: typed, from `jax.random.key`.
      state: ``[2**n]``.
      shots: how many measurements, 1 or more.

    Returns:
      ``[n]``, multiples of ``2 / shots`` from -1 to 1.

    Raises:
      ValueError: for no measurement.

    Example:
      >>> sampled_expectations(jax.random.key(0), jnp.array([0, 1, 0, 0], jnp.complex64), shots=3).tolist()
      [1.0, -1.0]
    """
    if shots < 1:
        raise ValueError(f"sampled_expectations: shots must be at least 1; got {shots}.")
    seen = jax.random.categorical(key, jnp.log(probabilities(state)), shape=(shots,))
    qubits = state.size.bit_length() - 1
    return jnp.mean(jnp.asarray(signs(qubits), state.real.dtype)[seen], axis=0)
