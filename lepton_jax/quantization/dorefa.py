"""DoReFa-Net: weights squashed by tanh, activations in [0, 1], gradients rounded by chance."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.straight_through import slope_where, straight_through
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Select
from lepton_jax.formats import Uniform
from lepton_jax.formats.layout import channel_axes
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.rounding import fake
from lepton_jax.quantization.quantizers import coded
from lepton_jax.quantization.weights import on_weights, packed_levels


@checked
@named
def dorefa(bits: int, *, scale: Literal["unit", "kept"] = "unit", select: Select = paths.matrices) -> Transform:
    """Show weights squashed by tanh to [-1, 1] and rounded to even levels.

    ``view = quantize_k(tanh(w) / max|tanh(w)|)``; the gradient goes straight through the rounding, and
    through the rest as it is.

    Args:
      bits: k, 2 to 8.
      scale: "unit": the largest weight is shown as 1, the paper's; for networks whose norms take that up. "kept": the result
        is multiplied by ``max|w|`` as a constant, so that a trained network can be fine-tuned.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for bits out of range, an unknown scale, or a selector that matches nothing.

    Example:
      >>> transform = dorefa(2)
      >>> params, state = transform.init({"kernel": jnp.array([[0.1, -0.4], [0.3, 0.0]])})
      >>> (1.5 * transform.view(params, state)["kernel"]).tolist()  # in steps of 2/3
      [[0.0, -2.0], [1.0, 0.0]]

    Source: Zhou et al. 2016, "DoReFa-Net", equation 9. Deviation: ``2^k`` levels of which one is 0, ``2^(k-1)`` below and one
    fewer above; the paper's have none, so that no pruned weight would stay. `scale` "kept" is not the paper's.
    """
    fmt = Uniform(bits)
    if scale not in ("unit", "kept"):
        raise ValueError(f"dorefa: scale must be 'unit' or 'kept'; got {scale!r}.")

    def squashed(w: Array, fmt: Uniform) -> tuple[Array, Array, Array]:
        """Return the weights to round, their scale and zero point."""
        stacked = channel_axes(w.ndim, fmt)
        largest = partial(jnp.max, axis=[axis for axis in range(w.ndim) if axis not in stacked], keepdims=True, initial=0.0)
        wide = jnp.nan_to_num(w.astype(jnp.float32), nan=0.0)
        bent = jnp.tanh(wide)
        top = largest(jnp.abs(bent))
        size = largest(jnp.abs(wide)) if scale == "kept" else jnp.ones_like(top)
        size = jax.lax.stop_gradient(jnp.where(top > 0, size, 1))
        step = jnp.maximum(size * (1 / fmt.steps), jnp.finfo(jnp.float32).tiny)
        return bent / jnp.where(top > 0, top, 1) * size, step, jnp.zeros(step.shape, jnp.int32)

    def seen(w: Array, fmt: Uniform, *_: Any) -> Array:
        bent, *grid = squashed(w, fmt)
        return straight_through(bent, fake(jax.lax.stop_gradient(bent), fmt, *grid)).astype(w.dtype)

    def coded(w: Array, fmt: Uniform, *_: Any) -> QArray:
        return packed_levels(*squashed(w, fmt), fmt, w.dtype)

    return on_weights("dorefa", fmt, select, seen=seen, coded=coded)


@checked
@dataclasses.dataclass(frozen=True)
class DoReFa:
    """Activations clipped to [0, 1] and rounded to ``2^k`` even levels; there is nothing to calibrate or to train.

    ``y = round((2^k - 1) clip(x, 0, 1)) / (2^k - 1)``; ``dy/dx = 1`` inside, 0 outside.

    Args:
      bits: k, 2 to 8.

    Raises:
      ValueError: for bits out of range.

    Example:
      >>> DoReFa(2)(jnp.array([-1.0, 0.4, 3.0]), {})
      Array([0.        , 0.33333334, 1.        ], dtype=float32)

    Source: Zhou et al. 2016, "DoReFa-Net", equation 11 and the bounded activation ``min(max(x, 0), 1)``.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        check_whole("DoReFa: bits", self.bits, 2, 8)

    @property
    def format(self) -> Uniform:
        """The number format of its integers."""
        return Uniform(self.bits, signed=False)

    def init(self, low: Array, high: Array) -> dict[str, Array]:
        """Return a site without parameters: the range is [0, 1] whatever was seen."""
        return {}

    def __call__(self, x: Array, site: Mapping[str, Array]) -> Array:
        scale, zero_point = self._grid(x)
        return fake(slope_where((x > 0) & (x < 1), x), self.format, scale, zero_point)

    def quantized(self, x: Array, site: Mapping[str, Array]) -> Quantized:
        """Return the codes, which are read back as what calling shows."""
        return coded(x, self.format, *self._grid(x))

    def _grid(self, x: Array) -> tuple[Array, Array]:
        shape = (1,) * x.ndim
        return jnp.full(shape, 1 / self.format.steps, jnp.float32), jnp.zeros(shape, jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dorefa_gradient(x: Array, key: Array, bits: int) -> Array:
    """Return `x`; the gradient that flows back through it is rounded to k bits by chance, right on average.

    ``g' = 2 m (quantize_k(g / (2 m) + 1/2 + N) - 1/2)``, m the largest magnitude in each example (over all axes but the first),
    ``N = u / (2^k - 1)`` with u uniform in [-1/2, 1/2].

    Args:
      x: activations, the first axis the batch.
      key: a typed random key, another one at every step.
      bits: k, 2 to 8.

    Example:
      >>> slope = jax.grad(lambda x: jnp.sum(dorefa_gradient(x, jax.random.key(0), 2) * jnp.array([[3.0, -3.0]])))
      >>> slope(jnp.ones((1, 2))).tolist()
      [[3.0, -3.0]]

    Source: Zhou et al. 2016, "DoReFa-Net", equation 12.
    """
    return x


def _gradient_fwd(x: Array, key: Array, bits: int) -> tuple[Array, Array]:
    return x, key


def _gradient_bwd(bits: int, key: Array, grad: Array) -> tuple[Array, None]:
    levels = 2**bits - 1
    wide = grad.astype(jnp.float32)
    top = jnp.max(jnp.abs(wide), axis=tuple(range(1, grad.ndim)), keepdims=True, initial=0.0)
    safe = jnp.where(top > 0, top, 1)
    noise = jax.random.uniform(key, grad.shape, minval=-0.5, maxval=0.5)
    rounded = jnp.clip(jnp.round((wide / (2 * safe) + 0.5) * levels + noise), 0, levels) / levels
    return (2 * top * (rounded - 0.5)).astype(grad.dtype), None


dorefa_gradient.defvjp(_gradient_fwd, _gradient_bwd)
