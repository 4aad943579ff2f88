"""The state of some qubits: the amplitudes of all basis states, qubit 0 the most significant bit."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array

MOST = 20
"""Qubits: a state of more would not fit beside its gradient."""


@checked
def zero_state(qubits: int, dtype: Any = jnp.complex64) -> Array:
    """Return the state ``|0...0>``.

    Args:
      qubits: how many, 1 to 20.
      dtype: complex.

    Returns:
      ``[2**qubits]``.

    Raises:
      ValueError: for too many qubits, or none.

    Example:
      >>> zero_state(1).real.tolist()
      [1.0, 0.0]
    """
    if not 1 <= qubits <= MOST:
        raise ValueError(f"zero_state: qubits must be 1 to {MOST}; got {qubits}.")
    return jnp.zeros(2**qubits, dtype).at[0].set(1)


@checked
def apply_gate(state: Array, gate: Array, qubit: int) -> Array:
    """Return the state after a gate of one qubit: ``sum_j gate[i, j] state[.. j ..]``.

    Args:
      state: ``[2**n]``.
      gate: ``[2, 2]``.
      qubit: 0 to n - 1.

    Raises:
      ValueError: for other shapes, or a qubit that is not there.

    Example:
      >>> flip = jnp.array([[0, 1], [1, 0]])
      >>> apply_gate(zero_state(2), flip, 1).real.tolist()
      [0.0, 1.0, 0.0, 0.0]
    """
    if gate.shape != (2, 2):
        raise ValueError(f"apply_gate: gate must have shape (2, 2); got {gate.shape}.")
    there = _qubits("apply_gate", state, qubit)
    low, high = state.reshape(2**qubit, 2, 2 ** (there - qubit - 1)).swapaxes(0, 1)
    parts = [gate[i, 0] * low + gate[i, 1] * high for i in range(2)]
    return jnp.stack(parts, axis=1).reshape(-1)


@checked
def cnot(state: Array, control: int, target: int) -> Array:
    """Return the state with the target qubit flipped where the control qubit is 1.

    Args:
      state: ``[2**n]``.
      control, target: two qubits, 0 to n - 1.

    Raises:
      ValueError: if they are one, or not there.

    Example:
      >>> cnot(jnp.array([0, 0, 1, 0]), 0, 1).tolist()
      [0, 0, 0, 1]
    """
    there = _qubits("cnot", state, control, target)
    if control == target:
        raise ValueError(f"cnot: control and target must be two qubits; got {control} twice.")
    return state[_flipped(np.arange(2**there), there, control, target)]


@checked
def probabilities(state: Array) -> Array:
    """Return ``|amplitude|**2`` of each basis state, ``[2**n]``.

    Example:
      >>> probabilities(zero_state(1)).tolist()
      [1.0, 0.0]
    """
    return jnp.square(state.real) + jnp.square(state.imag)


@checked
def expectations(state: Array) -> Array:
    """Return each qubit's expectation of Z: the probability of 0 less that of 1.

    Args:
      state: ``[2**n]``.

    Returns:
      ``[n]``, in [-1, 1].

    Example:
      >>> expectations(jnp.array([0, 1, 0, 0], jnp.complex64)).tolist()
      [1.0, -1.0]
    """
    return probabilities(state) @ jnp.asarray(signs(_qubits("expectations", state)), state.real.dtype)


def signs(qubits: int) -> np.ndarray:
    """Return what Z measures of each qubit in each basis state, 1 or -1: ``[2**n, n]``.

    Example:
      >>> signs(2).tolist()
      [[1, 1], [1, -1], [-1, 1], [-1, -1]]
    """
    return 1 - 2 * (np.arange(2**qubits)[:, None] >> np.arange(qubits)[::-1][None] & 1)


def ring(qubits: int, distance: int) -> np.ndarray:
    """Return the order that a ring of controlled flips brings amplitudes into: of qubit q to q + distance, q by q.

    Example:
      >>> ring(2, 1).tolist()  # from 0 to 1, then from 1 to 0
      [0, 2, 3, 1]
    """
    order = np.arange(2**qubits)
    if distance % qubits:
        for qubit in range(qubits):
            order = order[_flipped(np.arange(2**qubits), qubits, qubit, (qubit + distance) % qubits)]
    return order


def _flipped(numbers: np.ndarray, qubits: int, control: int, target: int) -> np.ndarray:
    """Numbers of basis states after a controlled flip, which is its own inverse."""
    return numbers ^ ((numbers >> (qubits - 1 - control) & 1) << (qubits - 1 - target))


def _qubits(name: str, state: Array, *used: int) -> int:
    """How many qubits a state has."""
    there = max(state.size.bit_length() - 1, 1)
    if state.shape != (2**there,):
        raise ValueError(f"{name}: state must have shape (2**n,); got {state.shape}. For many states use jax.vmap.")
    if any(not 0 <= qubit < there for qubit in used):
        raise ValueError(f"{name}: qubits must be 0 to {there - 1}; got {', '.join(map(str, used))}.")
    return there
