"""Three levels: a sign or zero."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format, in_steps
from lepton_jax.formats.layout import ChannelAxis
from lepton_jax.formats.statistics import mean_magnitude

_THRESHOLD = 0.7


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ternary(Format):
    """Signs and zeros with a scale, ``x = q * scale`` with q in {-1, 0, 1}.

    The scale is the mean magnitude of the weights beyond 0.7 mean magnitudes; each becomes the nearest level, NaN becomes 0.
    Two bits a weight in memory, fewer in a file.

    Args:
      channel_axis, group_size, group_axis, scale_dtype: see `Format`.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> quantize(jnp.array([-1.0, 0.5, 3.0]), Ternary()).unpack().tolist()
      [0.0, 0.0, 3.0]

    Source: Li and Liu 2016, "Ternary weight networks", equations 5 and 6. Deviation: what is beyond half the scale keeps its
    sign, which is nearest in squares; there, what is beyond 0.7 mean magnitudes does.
    """

    is_integer: ClassVar[bool] = True

    number = 2
    bits = 2
    name = "ternary"
    quiet_code = 1
    q_range = (-1, 1)
    """The lowest and highest integer."""

    channel_axis: ChannelAxis = None
    group_size: int | None = None
    group_axis: int | None = None
    scale_dtype: str = "float32"

    def own_range(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return minus and plus the mean magnitude of the larger weights."""
        mean = mean_magnitude(x, axes, _THRESHOLD * mean_magnitude(x, axes))
        return -mean, mean

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return the nearest of -1, 0 and 1, int8; halves become 0."""
        steps = jnp.nan_to_num(jnp.round(in_steps(x, scale)), nan=0.0)
        return jnp.clip(steps, -1, 1).astype(jnp.int8)

    def zero_code(self, zero_point: Array) -> Array:
        return jnp.zeros((), jnp.int8)

    def to_bits(self, qvalue: Array) -> Array:
        return (qvalue + 1).astype(jnp.uint8)

    def from_bits(self, codes: Array) -> Array:
        return codes.astype(jnp.int8) - 1
