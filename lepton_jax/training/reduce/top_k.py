"""Sums of the largest gradients."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.training.reduce.base import Compressed, Leaves


@checked
@dataclass(frozen=True)
class TopK(Compressed):
    """The mean of gradients of which each device sends only its largest, with their places.

    Of each leaf of two axes or more a device sends ``k = max(1, round(fraction * size))`` values and int32 places, 8 k bytes,
    to all others. What is small adds up in the error until it is among the largest. Leaves of fewer axes are summed whole.

    Adam, whose second moment sees rare and large gradients, bears a small fraction less well than momentum.

    Args:
      fraction: of each leaf that is sent, in (0, 1].
      dtype: of the leaves that are summed whole.
      axis: of the devices' mesh.

    Raises:
      ValueError: for a fraction out of (0, 1].

    Example:
      >>> reduce = TopK(0.25)
      >>> grads, state = {"w": jnp.array([[[4.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 2.0, 8.0]]])}, {"w": jnp.zeros((1, 4))}
      >>> state = jax.vmap(lambda _: reduce.init(state, 1))(jnp.arange(2))
      >>> mean, state = jax.vmap(reduce.reduce, axis_name="data")(grads, state)
      >>> mean["w"][0].tolist(), state.errors.values["w"][1, 0].tolist()
      ([[2.0, 0.0, 0.0, 4.0]], [[0.0, 0.5, 1.0, 0.0]])

    Source: Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory", algorithm 1; Aji and Heafield 2017.
    """

    fraction: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"TopK: fraction must be in (0, 1], of each leaf; got {self.fraction}.")

    def takes(self, leaf: Any) -> bool:
        """Whether it has two axes."""
        return leaf.ndim >= 2 and leaf.size > 0

    def exchange(self, shares: Leaves, shared: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """Send values and places to all."""
        sums, errors = {}, {}
        for path, share in shares.items():
            flat = share.reshape(-1)
            places = jax.lax.top_k(jnp.abs(flat), max(1, round(self.fraction * flat.size)))[1]
            values, at = (jax.lax.all_gather(part, self.axis).reshape(-1) for part in (flat[places], places))
            sums[path] = jnp.zeros_like(flat).at[at].add(values).reshape(share.shape)
            errors[path] = _without(flat, places).reshape(share.shape)
        return sums, errors, shared


def _without(flat: Array, places: Array) -> Array:
    return flat.at[places].set(0)
