"""The levels that a weight's every entry may take, in the leaf's own layout and as a matrix (inputs, outputs)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.formats import Format, Uniform, expand
from lepton_jax.formats.ranges import Calibration
from lepton_jax.graph.layout import Layout
from lepton_jax.leaves.rounding import calibrated


class Grid(NamedTuple):
    """Scale and zero point of a leaf.

    Attributes:
      scale: in the format's layout; or of the shape of a matrix, one for each of its entries.
      zero_point: likewise; where all are zero, one may stand for all.
    """

    scale: Array
    zero_point: Array

    def matrix(self, fmt: Format, layout: Layout) -> "Grid":
        """Return one scale and zero point for each entry of the leaf's matrix, (*stacked, inputs, outputs)."""
        return Grid(
            *(layout.matrix(_each(part, layout.shape, fmt)) for part in (self.scale.astype(jnp.float32), self.zero_point))
        )


def snap(x: Array, grid: Grid, fmt: Format) -> Array:
    """Return the nearest level to each entry, float32; `grid` broadcasts against `x`.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> snap(jnp.array([0.4, 0.6]), Grid(jnp.float32(1), jnp.int32(0)), Uniform(bits=2)).tolist()
      [0.0, 1.0]
    """
    return fmt.from_codes(fmt.to_codes(x, *grid), *grid)


def output_error(difference: Array, hessian: Array | None) -> Array:
    """Return ``d' H d`` for each output, as the parts that the inputs have in it: ``d_ij (H d)_ij``.

    Args:
      difference: (..., inputs, outputs), of two weights.
      hessian: (..., inputs, inputs); None: the identity.

    Example:
      >>> output_error(jnp.array([[1.0], [1.0]]), jnp.array([[2.0, 1.0], [1.0, 2.0]])).sum().item()
      6.0
    """
    if hessian is None:
        return difference**2
    return difference * jnp.matmul(hessian, difference, precision=jax.lax.Precision.HIGHEST)


def search_grid(
    leaf: Array,
    hessian: Array | None,
    layout: Layout,
    fmt: Format,
    calibration: Calibration | None = None,
    factors: Sequence[float] | None = None,
) -> Grid:
    """Return the grid of a leaf: that of the calibration, or for each scale the best of several multiples of its range.

    The best one is that which, with all weights rounded to nearest, has the least part in the layer's output error
    ``tr(dW' H dW)``; with one scale an output this is that output's error itself. Where several scales share an output, and one
    multiple for all of them leaves less, that one is taken: no output is worse than by any one multiple.

    Args:
      leaf: the weight, in its own layout.
      hessian: (*stacked, inputs, inputs); only needed with factors.
      layout: the leaf as a matrix.
      fmt: the format.
      calibration: gives the range; None: the format's own.
      factors: what the range may be multiplied by; none, ``()``: the range as it is. None: where there is a Hessian and no
        calibration, `both_ends` of the format.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> layout = Layout(shape=(3, 1), index=np.arange(3).reshape(3, 1))
      >>> leaf, hessian = jnp.array([[1.0], [1.1], [3.75]]), jnp.diag(jnp.array([1.0, 1.0, 1e-3]))
      >>> search_grid(leaf, hessian, layout, Uniform(bits=2), factors=(1.0, 0.4)).scale
      Array([[1.]], dtype=float32)
    """
    if factors is None:
        factors = both_ends(fmt) if hessian is not None and calibration is None else ()
    if not factors:
        return Grid(*calibrated(leaf, fmt, calibration))
    grids = [Grid(*calibrated(leaf * factor, fmt, calibration)) for factor in factors]
    matrix = layout.matrix(leaf.astype(jnp.float32))

    def errors(grid: Grid) -> tuple[Array, Array]:
        """For each scale: the parts of what shares it, and the whole errors of the outputs that it has a part in."""
        parts = output_error(snap(matrix, grid.matrix(fmt, layout), fmt) - matrix, hessian)
        whole = jnp.broadcast_to(jnp.sum(parts, axis=-2, keepdims=True), parts.shape)
        own, every = (_per_scale(layout.leaf(each), grid.scale.shape, fmt) for each in (parts, whole))
        return own, every

    own, every = zip(*map(errors, grids))
    mixed = _least(grids, own)
    return _least([mixed, *grids], [errors(mixed)[1], *every])


def _least(grids: Sequence[Grid], errors: Sequence[Array]) -> Grid:
    """Return for each scale that of the first grid with the least error."""
    place = jnp.argmin(jnp.stack(list(errors)), axis=0)[None]

    def choose(*parts: Array) -> Array:
        return jnp.take_along_axis(jnp.stack(parts), place, axis=0)[0] if parts[0].shape == place.shape[1:] else parts[0]

    return Grid(*(choose(*parts) for parts in zip(*grids)))  # of one zero point for all scales, that one


def both_ends(fmt: Format) -> tuple[float, ...]:
    """Return what the range of a format is multiplied by so that its largest weight is a level, beside 1.

    In the full range of symmetric integers both ends are half a step off, which is best for most weights, and worst for one
    large weight that matters: AWQ makes such weights. With ``(2**(b-1) - 1/2) / (2**(b-1) - 1)`` the largest is exact.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> both_ends(Uniform(bits=2)), both_ends(Uniform(bits=2, narrow_range=True))
      ((1.0, 1.5), ())
    """
    return (1.0, fmt.steps / fmt.q_range[1]) if isinstance(fmt, Uniform) and fmt.is_full else ()


def _per_scale(parts: Array, shape: tuple[int, ...], fmt: Format) -> Array:
    """Sum what belongs to the same scale."""
    count = int(np.prod(shape))
    place = _each(jnp.arange(count).reshape(shape), parts.shape, fmt)
    return jax.ops.segment_sum(parts.reshape(-1), place.reshape(-1), count).reshape(shape)


def _each(part: Array, shape: tuple[int, ...], fmt: Format) -> Array:
    """Return a scale, or zero point, for each entry of an array of this shape."""
    return jnp.broadcast_to(expand(part, shape, fmt), shape)
