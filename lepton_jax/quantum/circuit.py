"""A circuit of layers: inputs as rotations, trained rotations, a ring of controlled flips."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.quantum.gates import rot, rx
from lepton_jax.quantum.state import expectations, probabilities, ring, zero_state


@checked
def circuit_state(angles: Array, inputs: Array, *, reupload: bool = True) -> Array:
    """Return the state at the end of the circuit.

    Begin with ``|0...0>``. Layer l = 0, 1, ... turns qubit q by ``RX(inputs[q])`` (without `reupload` only the first layer
    does), then by ``RZ(c) RY(b) RZ(a)`` with ``a, b, c = angles[l, q]``, and then flips qubit ``(q + r) mod n`` where qubit q
    is 1, for q = 0 to n - 1 in turn, with ``r = 1 + l mod (n - 1)``. One qubit is never flipped. Layers and qubits are scans,
    so that the time of compilation does not depend on their numbers.

    Args:
      angles: in radians, floating ``[layers, n, 3]``.
      inputs: in radians, ``[n]``; for a batch use `jax.vmap`, or `QuantumLayer`.
      reupload: whether every layer reads the inputs: an output then has as many frequencies of each as there are layers.

    Returns:
      complex ``[2**n]``, of norm 1 within rounding; complex128 of float64.

    Raises:
      ValueError: for other shapes.

    Example:
      >>> state = circuit_state(jnp.zeros((1, 2, 3)), jnp.array([jnp.pi, 0.0]))
      >>> jnp.abs(state).round(3).tolist()  # qubit 0 is turned to 1, flips qubit 1, which flips it back
      [0.0, 1.0, 0.0, 0.0]

    Source: M. Schuld et al., Circuit-centric quantum classifiers, 2018 (the layers; also PennyLane's StronglyEntanglingLayers);
    A. Perez-Salinas et al., Data re-uploading for a universal quantum classifier, 2020.
    """
    if angles.ndim != 3 or angles.shape[2] != 3 or not angles.size or inputs.shape != angles.shape[1:2]:
        raise ValueError(
            f"circuit: needs angles [layers, n, 3] and inputs [n]; got {angles.shape} and {inputs.shape}. "
            "For a batch of inputs use jax.vmap or QuantumLayer."
        )
    layers, qubits = angles.shape[:2]
    read = [True, *[reupload] * (layers - 1)]
    rings = jnp.asarray(np.stack([ring(qubits, 1 + layer % max(qubits - 1, 1)) for layer in range(layers)]))

    def layer(state: Array, given: Any) -> tuple[Array, None]:
        turns, order, reads = given
        entering = jax.vmap(rx)(jnp.where(reads, inputs, 0))
        gates = jnp.einsum("qij,qjk->qik", jax.vmap(rot)(turns), entering)
        return jax.lax.scan(_turned, state, gates)[0][order], None

    real = jnp.result_type(angles, inputs, jnp.float32)
    angles, inputs = angles.astype(real), inputs.astype(real)
    start = zero_state(qubits, jnp.result_type(real, jnp.complex64))
    state = jax.lax.scan(layer, start, (angles, rings, jnp.asarray(read)))[0]
    return state * jax.lax.rsqrt(jnp.sum(probabilities(state)))  # hundreds of float32 gates move the norm by more than 1e-6


def _turned(state: Array, gate: Array) -> tuple[Array, None]:
    """Apply a gate to the first qubit, which then becomes the last: after as many gates as qubits all stand as before."""
    low, high = state.reshape(2, -1)
    return jnp.stack([gate[i, 0] * low + gate[i, 1] * high for i in range(2)], axis=-1).reshape(-1), None


@checked
def circuit(angles: Array, inputs: Array, *, reupload: bool = True) -> Array:
    """Return each qubit's expectation of Z at the end of the circuit; see `circuit_state`.

    Returns:
      ``[n]``, in [-1, 1].

    Example:
      >>> circuit(jnp.zeros((1, 1, 3)), jnp.array([jnp.pi / 3])).round(4).tolist()  # cos(pi / 3)
      [0.5]
    """
    return expectations(circuit_state(angles, inputs, reupload=reupload))
