"""Two levels: one bit a weight."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.layout import ChannelAxis
from lepton_jax.formats.statistics import mean_magnitude


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Binary(Format):
    """Signs with a scale, ``x = q * scale`` with q in {-1, 1} and the mean magnitude as scale, which is nearest in squares.

    There is no zero: 0 and NaN become +scale; only where a tensor, channel or group is all zeros, the scale is 0 and so are
    they. A pruned leaf is refused (`Ternary`, or a `Codebook` of one bit, have a zero).

    Args:
      channel_axis, group_size, group_axis, scale_dtype: see `Format`.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> quantize(jnp.array([-1.0, 0.5, 3.0]), Binary()).unpack().tolist()
      [-1.5, 1.5, 1.5]

    Source: Rastegari et al. 2016, "XNOR-Net", equation 6.
    """

    has_zero: ClassVar[bool] = False
    is_integer: ClassVar[bool] = True

    number = 1
    bits = 1
    name = "binary"
    quiet_code = 2
    q_range = (-1, 1)
    """The lowest and highest integer; 0 is none."""

    channel_axis: ChannelAxis = None
    group_size: int | None = None
    group_axis: int | None = None
    scale_dtype: str = "float32"

    def own_range(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return minus and plus the mean magnitude."""
        mean = mean_magnitude(x, axes)
        return -mean, mean

    def scale_and_zero_point(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the larger magnitude of the bounds; 0 for an empty range."""
        scale, zero_point = super().scale_and_zero_point(low, high)
        return jnp.where(jnp.maximum(-low, high) <= 0, jnp.zeros((), scale.dtype), scale), zero_point

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return the signs, int8; of 0 and NaN, 1."""
        return jnp.where(x < 0, -1, 1).astype(jnp.int8)

    def zero_code(self, zero_point: Array) -> Array:
        raise ValueError(
            "Binary: has no zero, so its arrays cannot be masked. Prune with Ternary() or Codebook(bits=1), which have one."
        )

    def to_bits(self, qvalue: Array) -> Array:
        return (qvalue > 0).astype(jnp.uint8)

    def from_bits(self, codes: Array) -> Array:
        return jnp.where(codes > 0, 1, -1).astype(jnp.int8)
