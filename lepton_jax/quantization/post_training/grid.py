"""The levels that a weight's every entry may take, in the leaf's own layout and as a matrix (inputs, outputs)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.formats import Format, expand
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
    factors: Sequence[float] = (),
) -> Grid:
    """Return the grid of a leaf: that of the calibration, or for each scale the best of several multiples of its range.

    The best one is that which, with all weights rounded to nearest, has the least part in the layer's output error
    ``tr(dW' H dW)``. With one scale an output this is that output's error itself.

    Args:
      leaf: the weight, in its own layout.
      hessian: (*stacked, inputs, inputs); only needed with factors.
      layout: the leaf as a matrix.
      fmt: the format.
      calibration: gives the range; None: the format's own.
      factors: what the range may be multiplied by; none: the calibration's range.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> layout = Layout(shape=(3, 1), index=np.arange(3).reshape(3, 1))
      >>> leaf, hessian = jnp.array([[1.0], [1.1], [3.75]]), jnp.diag(jnp.array([1.0, 1.0, 1e-3]))
      >>> search_grid(leaf, hessian, layout, Uniform(bits=2), factors=(1.0, 0.4)).scale
      Array([[1.]], dtype=float32)
    """
    if not factors:
        return Grid(*calibrated(leaf, fmt, calibration))
    matrix = layout.matrix(leaf.astype(jnp.float32))
    best: tuple[Array, Grid] | None = None
    for factor in factors:
        grid = Grid(*calibrated(leaf * factor, fmt, calibration))
        parts = output_error(snap(matrix, grid.matrix(fmt, layout), fmt) - matrix, hessian)
        error = _per_scale(layout.leaf(parts), grid.scale.shape, fmt)
        if best is not None:
            better = error < best[0]
            error = jnp.minimum(error, best[0])
            grid = Grid(*(jnp.where(better, new, old) for new, old in zip(grid, best[1])))
        best = (error, grid)
    assert best is not None
    return best[1]


def _per_scale(parts: Array, shape: tuple[int, ...], fmt: Format) -> Array:
    """Sum what belongs to the same scale."""
    count = int(np.prod(shape))
    place = _each(jnp.arange(count).reshape(shape), parts.shape, fmt)
    return jax.ops.segment_sum(parts.reshape(-1), place.reshape(-1), count).reshape(shape)


def _each(part: Array, shape: tuple[int, ...], fmt: Format) -> Array:
    """Return a scale, or zero point, for each entry of an array of this shape."""
    return jnp.broadcast_to(expand(part, shape, fmt), shape)
