"""A small study of quantum circuits as layers, simulated exactly in plain JAX; no claim of speed."""

from lepton_jax.quantum.circuit import circuit, circuit_state
from lepton_jax.quantum.gates import rot, rx, ry, rz
from lepton_jax.quantum.layer import QuantumLayer
from lepton_jax.quantum.sampling import sampled_expectations
from lepton_jax.quantum.shift import parameter_shift
from lepton_jax.quantum.state import apply_gate, cnot, expectations, probabilities, zero_state

__all__ = [
    "QuantumLayer",
    "apply_gate",
    "circuit",
    "circuit_state",
    "cnot",
    "expectations",
    "parameter_shift",
    "probabilities",
    "rot",
    "rx",
    "ry",
    "rz",
    "sampled_expectations",
    "zero_state",
]
