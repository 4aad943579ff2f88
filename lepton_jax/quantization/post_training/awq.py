"""AWQ: scale up the weights of the inputs that matter before rounding, and those inputs down."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.formats import Format
from lepton_jax.formats.ranges import Calibration
from lepton_jax.graph.layout import Layout
from lepton_jax.graph.trace import Apply
from lepton_jax.leaves.qarray import QArray
from lepton_jax.quantization.post_training.grid import Grid, output_error, search_grid, snap
from lepton_jax.quantization.post_training.inputs import formats_of, one_layer
from lepton_jax.quantization.post_training.smooth_quant import per_channel, row_channels, scalings_of
from lepton_jax.quantization.weights import packed_levels


@checked
def awq(
    w: Array, hessian_inputs: Array, fmt: Format, *, candidates: int = 20, calibration: Calibration | None = None
) -> tuple[QArray, Array]:
    """Quantize one layer ``y = x w`` as ``(x / s) quantize(s w)``.

    ``s_j = mean|x_j|^a``, with the a in [0, 1) of least output error; a = 0 is rounding to nearest. What is scaled up is often
    the largest of those that share a scale, which the full range of symmetric integers shows half a step off: so for each a
    both ends are tried, see `quantize_layers`.

    Args:
      w: (inputs, outputs); floating.
      hessian_inputs: what the layer is fed, (..., inputs).
      fmt: the number format.
      candidates: how many values of a.
      calibration: finds the range; None: the format's own.

    Returns:
      (packed leaf of ``s w``, s): ``(x / s) @ dequantize(leaf)``.

    Raises:
      ValueError: for shapes that do not fit.

    Example:
      >>> from lepton_jax.quantization import Uniform, quantize
      >>> w, x = jnp.array([[0.4], [1.2]]), jnp.array([[10.0, 0.1]])
      >>> q, s = awq(w, x, Uniform(bits=2))
      >>> (
      ...     bool(jnp.abs((x / s[None, :]) @ q.unpack() - x @ w)[0, 0] < 0.2),
      ...     round(float((x @ quantize(w, Uniform(bits=2)).unpack() - x @ w)[0, 0]), 1),
      ... )
      (True, -4.0)

    Source: Lin, Tang, Tang, Yang, Dang, Han 2024, "AWQ: Activation-aware weight quantization", equations 4 and 5.
    """
    layout, rows, hessian = one_layer("awq", w, hessian_inputs)
    sizes = _candidates(jnp.mean(jnp.abs(rows), axis=0), candidates)
    tried = [_scaled(factors, hessian, w, layout, fmt, calibration) for factors in sizes]
    best = int(np.argmin([jnp.sum(one.error) for one in tried]))
    return packed_levels(tried[best].levels, *tried[best].grid, fmt, w.dtype), sizes[best]


@checked
def awq_scale(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    fmt: Format | int | str | Mapping[Path, Format | int | str],
    *,
    select: Select | None = None,
    candidates: int = 20,
    calibration: Calibration | None = None,
) -> tuple[PyTree, dict[Path, str]]:
    """Scale a model's weights as `awq` does, and what makes their inputs by the inverse; the function stays as it is.

    The layers that share an input (query, key and value) share the factors; each layer of a scan has its own. Afterwards
    quantize the result by `quantize_layers`, with `Nearest` or any other method: with inputs (``sequential=True``, or factors),
    so that the largest of those that share a scale, which is often what AWQ protects, may be exact.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs.
      fmt: the number format, for all layers or by path; placed by the axes of each leaf, as in `quantize_layers`.
      select: which layers; None: all.
      candidates: see `awq`.
      calibration: see `awq`.

    Returns:
      (variables, left): dense variables, and why by path, for every selected layer whose input cannot be scaled, or leaf that
      looks like a weight but is none of a layer.

    Raises:
      ValueError: for no batch, or selected leaves that are no layer's weight or have no format.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> def apply(v, x):
      ...     return (x * v["scale"][None]) @ v["w"]
      >>> v = {"scale": jnp.array([10.0, 0.1]), "w": jnp.array([[0.3], [1.0]])}
      >>> new, left = awq_scale(apply, v, [jnp.ones((1, 2))], Uniform(bits=2), select="w")
      >>> bool(new["w"][0, 0] > 0.3), bool(new["scale"][0] < 10), left
      (True, True, {})

    Source: Lin et al. 2024, section 3.2. Deviation: wherever the graph allows it; ranges are clipped by `quantize_layers`'s
    `factors`.
    """
    check_whole("awq_scale: candidates", candidates, 1)
    found, scalings, left, walk = scalings_of(apply, variables, batches, select)
    formats = formats_of(fmt, found.uses)
    absent = [path for path in found.uses if path not in formats]
    if absent:
        raise ValueError(f"awq_scale: no format for {', '.join(absent)}; give one, or exclude them by `select`.")
    for scaling in scalings:
        total: Any = 0
        sizes: list[Array] = []
        for path in [path for path in scaling.side(-1) if path in found.uses]:
            inputs, placed = walk.inputs(path, walk.floats), formats[path].at(found.axes(path))
            channels = row_channels(scaling, inputs.layout, path)
            sizes = sizes or _candidates(
                per_channel(inputs.size, channels, scaling.channels).reshape(scaling.layers, -1), candidates
            )
            weight = paths.flatten(variables)[path]
            rows = [factors.reshape(-1)[channels] for factors in sizes]
            each = [_scaled(row, inputs.second, weight, inputs.layout, placed, calibration).error for row in rows]
            total += np.stack([np.asarray(error).reshape(scaling.layers, -1).sum(1) for error in each])
        best = np.argmin(total, axis=0)
        factors = jnp.stack([sizes[place][layer] for layer, place in enumerate(best)])
        variables = scaling.apply(variables, 1 / factors.reshape(-1))
    return variables, left


def _candidates(size: Array, count: int) -> list[Array]:
    """Return the factors of the channels, (..., channels), for each exponent."""
    found = []
    for place in range(count):
        factors = jnp.where(size > 0, jnp.where(size > 0, size, 1) ** (place / count), 1)
        ends = jnp.max(factors, axis=-1, keepdims=True) * jnp.min(factors, axis=-1, keepdims=True)
        found.append(factors / jnp.sqrt(ends))
    return found


class _Scaled(NamedTuple):
    levels: Array
    """Of the scaled weight, in the leaf's layout."""
    grid: Grid
    error: Array
    """Of the outputs of each matrix, once its inputs are scaled back."""


def _scaled(
    factors: Array, hessian: Array, weight: Array, layout: Layout, fmt: Format, calibration: Calibration | None
) -> _Scaled:
    """Scale a weight by its inputs' factors, and round it."""
    matrix = layout.matrix(weight.astype(jnp.float32)) * factors[..., None]
    inside = hessian / (factors[..., :, None] * factors[..., None, :])
    grid = search_grid(layout.leaf(matrix), inside, layout, fmt, calibration)
    levels = snap(matrix, grid.matrix(fmt, layout), fmt)
    return _Scaled(layout.leaf(levels), grid, jnp.sum(output_error(levels - matrix, inside), axis=(-1, -2)))
