"""A circuit as a layer of a network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.quantum.circuit import circuit, circuit_state
from lepton_jax.quantum.sampling import sampled_expectations


class QuantumLayer(nn.Module):
    """Turn n features into n expectations of a simulated circuit, one qubit a feature.

    ``outputs = circuit(angles, inputs)``, whose angles ``[layers, n, 3]`` are an ordinary parameter: seen pruned or in few
    bits, trained, saved as any other.

    Args:
      layers: of the circuit.
      reupload: whether every layer reads the inputs.
      angles_init: of the angles, in radians: ``angles_init(key, shape)``.
      shots: None: exact expectations. Else so many measurements an example, drawn from the stream of keys "shots"; without
        gradient.

    Raises:
      ValueError: for no layer, no feature, or no measurement.

    Example:
      >>> layer = QuantumLayer(layers=2)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> variables["params"]["angles"].shape, layer.apply(variables, jnp.ones((5, 3))).shape
      ((2, 3, 3), (5, 3))
      >>> layer.clone(shots=10).apply(variables, jnp.ones((5, 3)), rngs={"shots": jax.random.key(1)}).shape
      (5, 3)
    """

    layers: int = 2
    reupload: bool = True
    angles_init: Callable[..., Any] = nn.initializers.normal(0.3)
    shots: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return expectations ``[..., n]`` of features ``[..., n]`` in radians."""
        if self.layers < 1 or not x.ndim or not x.shape[-1]:
            raise ValueError(
                f"QuantumLayer: needs 1 layer or more and features [..., n]; got layers={self.layers} and {x.shape}."
            )
        angles = self.param("angles", self.angles_init, (self.layers, x.shape[-1], 3))
        flat = x.reshape(-1, x.shape[-1])
        if self.shots is None:
            return jax.vmap(partial(circuit, reupload=self.reupload), (None, 0))(angles, flat).reshape(x.shape)
        states = jax.vmap(partial(circuit_state, reupload=self.reupload), (None, 0))(angles, flat)
        keys = jax.random.split(self.make_rng("shots"), len(flat))
        measured = jax.vmap(partial(sampled_expectations, shots=self.shots))(keys, states)
        return jnp.asarray(measured).reshape(x.shape)
