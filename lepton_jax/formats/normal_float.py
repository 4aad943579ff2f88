"""NormalFloat: sixteen levels at the quantiles of the normal distribution."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format, in_steps
from lepton_jax.formats.layout import ChannelAxis

_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_ZERO = _LEVELS.index(0.0)


def look_up(table: tuple[float, ...], places: Array) -> Array:
    """Return ``table[places]``, float32; a place beyond the table reads its last entry."""
    return jnp.take(jnp.asarray(table, jnp.float32), places.astype(jnp.int32), mode="clip")


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalFloat4(Format):
    """Four bits, at sixteen quantiles of the normal distribution: ``x = table[q] * scale``, the scale the largest magnitude.

    Zero is one of the levels. An axis shorter than a group is one group.

    Args:
      group_size: 64 as in the paper; None: one scale a tensor or channel.
      channel_axis, group_axis, scale_dtype: see `Format`.

    Example:
      >>> from lepton_jax.leaves.quantize import quantize
      >>> quantize(jnp.array([-2.0, 0.0, 2.1]), NormalFloat4()).qvalue.tolist()
      [0, 7, 15]

    Source: Dettmers et al. 2023, "QLoRA", appendix E. Deviations: groups run along one axis of the array, not along its flat
    order; scales are not quantized in turn (take ``scale_dtype="float16"``).
    """

    short_groups: ClassVar[bool] = True

    number = 4
    bits = 4
    name = "nf4"
    quiet_code = _ZERO
    table = _LEVELS
    """The levels of the codes, at scale 1."""

    channel_axis: ChannelAxis = None
    group_size: int | None = 64
    group_axis: int | None = None
    scale_dtype: str = "float32"

    def to_codes(self, x: Array, scale: Array, zero_point: Array) -> Array:
        """Return the places of the nearest levels, uint8; half-way between two, the lower."""
        levels = np.asarray(_LEVELS, np.float32)
        place = jnp.nan_to_num(in_steps(x, scale), nan=0.0)
        codes = jnp.zeros(x.shape, jnp.uint8)
        for boundary in (levels[1:] + levels[:-1]) / 2:
            codes += (place > boundary).astype(jnp.uint8)
        return codes

    def from_codes(self, qvalue: Array, scale: Array, zero_point: Array) -> Array:
        return look_up(_LEVELS, qvalue) * scale.astype(jnp.float32)

    def zero_code(self, zero_point: Array) -> Array:
        return jnp.uint8(_ZERO)
