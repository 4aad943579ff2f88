"""Rounding to a grid whose step, and offset, are trained: the mathematics on one array, and a quantizer of activations."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array
from lepton_jax.formats import Uniform, expand, named_format
from lepton_jax.formats.base import storable
from lepton_jax.formats.ranges import Calibration
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.rounding import fake
from lepton_jax.quantization.quantizers import coded


def grid(step: Array, offset: Array, fmt: Uniform) -> tuple[Array, Array]:
    """Return the scale and the zero point that a trained step and offset stand for.

    The scale is the step, rounded to how the format stores it and at least the smallest normal float32, since training may
    drive a step to zero or below; ``zero_point = round(-offset / scale)`` within the format's integers, so that 0 is exact. A
    symmetric format has the zero point 0.

    Args:
      step: float, in the scale layout.
      offset: of the same shape; not read if the format is symmetric.
      fmt: the number format.

    Returns:
      (scale, zero point int32), as `fake` and `QArray` take them.

    Example:
      >>> grid(jnp.array([0.5]), jnp.array([-1.1]), Uniform(2, symmetric=False))
      (Array([0.5], dtype=float32), Array([2], dtype=int32))
    """
    low, high = fmt.q_range
    scale = storable(step.astype(jnp.float32), fmt.scale_dtype, high - low)
    if fmt.symmetric:
        return scale, jnp.zeros((1,) * scale.ndim if fmt.group_size else scale.shape, jnp.int32)
    whole = jnp.round(-offset.astype(jnp.float32) / scale.astype(jnp.float32))
    return scale, jnp.clip(jnp.nan_to_num(whole), low, high).astype(jnp.int32)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def learned_round(x: Array, step: Array, offset: Array, fmt: Uniform) -> Array:
    """Round to the grid of a trained step and offset, with the derivatives of LSQ and LSQ+.

    With ``t = x / s + z`` and the integers ``[n, p]`` of the format, ``y = (round(clip(t, n, p)) - z) s``, and

        dy/dx = 1 inside, 0 outside;  dy/ds = round(t) - t inside, n below, p above;  dy/doffset = 0 inside, 1 outside,

    where inside is ``n < t < p``.

    Args:
      x: floating, any shape.
      step: s, in the scale layout; must be positive to be seen as it is, see `grid`.
      offset: of the same shape; not read, and without a derivative, if the format is symmetric.
      fmt: the number format.

    Returns:
      rounded values of the shape and dtype of x; bit for bit those of `fake` on the same grid.

    Example:
      >>> x, step, none = jnp.array([0.25, 0.9, -3.0]), jnp.ones(1), jnp.zeros(1)
      >>> learned_round(x, step, none, Uniform(2)).tolist()
      [0.0, 1.0, -2.0]
      >>> jax.grad(lambda s: jnp.sum(learned_round(x[:1], s, none, Uniform(2))))(step).tolist()
      [-0.25]

    Source: Esser et al. 2020, "Learned step size quantization", equations 1 to 3 and 5; Bhalgat et al. 2020, "LSQ+",
    equations 3 to 6. Deviation: the offset is used rounded to whole steps, since else 0 would not be exact; see `grid`.
    """
    return fake(x, fmt, *grid(step, offset, fmt))


@learned_round.defjvp
def _learned_round_jvp(fmt: Uniform, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (x, step, offset), (dx, dstep, doffset) = primals, tangents
    scale, zero_point = (expand(a, x.shape, fmt) for a in grid(step, offset, fmt))
    low, high = fmt.q_range
    place = jnp.nan_to_num(x.astype(jnp.float32) / scale.astype(jnp.float32), nan=0.0) + zero_point
    inside = (low < place) & (place < high)
    near = jnp.clip(place, low, high)
    slope = jnp.where(inside, jnp.round(near) - near, near)
    moved = jnp.where(inside, dx, 0).astype(jnp.float32) + slope * expand(dstep, x.shape, fmt)
    if not fmt.symmetric:
        moved += jnp.where(inside, 0, expand(doffset, x.shape, fmt))
    return learned_round(x, step, offset, fmt), moved.astype(x.dtype)


def scaled_gradient(x: Array, factor: float) -> Array:
    """Return `x` bit for bit, with its gradient times `factor`.

    Example:
      >>> jax.grad(lambda s: scaled_gradient(s, 0.5) ** 2)(3.0)
      Array(3., dtype=float32, weak_type=True)
    """
    return straight_through(x * factor, x)


def step_gradient_factor(count: float, fmt: Uniform) -> float:
    """Return LSQ's gradient scale ``1 / sqrt(N Q_p)``, for N values that share a step.

    Example:
      >>> step_gradient_factor(12, Uniform(3))
      0.16666666666666666

    Source: Esser et al. 2020, section 2.2.
    """
    return 1 / math.sqrt(max(count, 1) * fmt.q_range[1])


@checked
@dataclasses.dataclass(frozen=True)
class LearnedStep:
    """Activations rounded with a trained step (LSQ), and in an affine format a trained offset (LSQ+).

    The site has ``step`` and, if the format is affine, ``offset``, in the scale layout; their gradients are scaled by
    ``1 / sqrt(N Q_p)``, N the features of one example that share a step; the first axis is read as the batch.

    Args:
      format: after a ReLU unsigned, ``Uniform(4, signed=False)``; else signed or affine.
      calibration: finds the range that the first step covers: `TwiceMean` is LSQ's, `Mse` LSQ+'s; None: everything (`MinMax`).

    Raises:
      TypeError: for a format that is not `Uniform`.

    Example:
      >>> quantizer = LearnedStep(Uniform(2, symmetric=False))
      >>> site = quantizer.init(jnp.array([[0.0]]), jnp.array([[3.0]]))
      >>> quantizer(jnp.array([[0.4, 1.6, 9.0]]), site).tolist()
      [[0.0, 2.0, 3.0]]

    Source: as for `learned_round`. Deviation: `TwiceMean` leaves zeros out.
    """

    format: Uniform
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        uniform_of("LearnedStep", self.format)

    def init(self, low: Array, high: Array) -> dict[str, Array]:
        """Return the site for a calibrated range."""
        scale, zero_point = self.format.scale_and_zero_point(low, high)
        offset = -zero_point.astype(jnp.float32) * scale
        return {"step": scale} if self.format.symmetric else {"step": scale, "offset": offset}

    def __call__(self, x: Array, site: Mapping[str, Array]) -> Array:
        step = site["step"]
        # The features of one example; lengths without a number, in a program that takes any, have no gradient to scale.
        features = math.prod(size for size in x.shape[1:] if isinstance(size, int))
        factor = step_gradient_factor(features / step.size, self.format)
        offset = site.get("offset", jnp.zeros_like(step))
        return learned_round(x, scaled_gradient(step, factor), scaled_gradient(offset, factor), self.format)

    def quantized(self, x: Array, site: Mapping[str, Array]) -> Quantized:
        """Return the codes, which are read back as what calling shows."""
        step = jax.lax.stop_gradient(site["step"])
        return coded(x, self.format, *grid(step, site.get("offset", jnp.zeros_like(step)), self.format))


def uniform_of(name: str, fmt: Any) -> Uniform:
    """Return a format that is uniform, given itself, its bits or its short name: only such a grid has a step.

    Raises:
      TypeError: for any other.
      ValueError: for a short name that there is not.

    Example:
      >>> uniform_of("lsq", Uniform(4)).bits, uniform_of("lsq", 3).bits, uniform_of("lsq", "int4_g128").group_size
      (4, 3, 128)
    """
    fmt = named_format(f"{name}: format", fmt)
    if not isinstance(fmt, Uniform):
        raise TypeError(f"{name}: format must be a Uniform, e.g. Uniform(bits=4), whose step can be trained; got {fmt!r}.")
    return fmt
