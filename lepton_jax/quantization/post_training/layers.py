"""Quantizing a model's layers one after the other, by any method that quantizes one matrix."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from tqdm.auto import tqdm

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.formats import Format
from lepton_jax.formats.ranges import Calibration
from lepton_jax.graph.trace import Apply, trace
from lepton_jax.graph.weights import Layout, weight_uses
from lepton_jax.leaves.qarray import QArray
from lepton_jax.quantization.post_training.grid import Grid, output_error, search_grid, snap
from lepton_jax.quantization.post_training.inputs import LayerInputs, first_batch, formats_of, layer_inputs
from lepton_jax.quantization.weights import packed_levels


class Matrix(NamedTuple):
    """One layer, to be quantized.

    Attributes:
      weight: (inputs, outputs), float32: what the outputs shall be near.
      hessian: (inputs, inputs), float32: ``X' X``, of any positive scale.
      grid: scale and zero point of every entry, (inputs, outputs).
    """

    weight: Array
    hessian: Array
    grid: Grid


class Method(Protocol):
    """Chooses a level for every entry of a matrix."""

    def __call__(self, matrix: Matrix, fmt: Format) -> tuple[Array, Array]:
        """Return the levels, (inputs, outputs), float32, and the damping that the Hessian took, a scalar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """How a layer's outputs changed.

    Args:
      error: of the quantized outputs on the calibration inputs, ``|X (Q - W)|^2 / |X W|^2``.
      nearest: the same, had every weight been rounded to nearest on the calibration's own range.
      damping: what the Hessian took, times the mean of its diagonal; 0 for methods that factor none.
      dead: how many inputs were always zero.

    Example:
      >>> LayerReport(error=0.01, nearest=0.02, damping=0.01, dead=0).error
      0.01
    """

    error: float
    nearest: float
    damping: float
    dead: int


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest:
    """Round every weight to the nearest level.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> weight, grid = jnp.array([[0.4], [0.6]]), Grid(jnp.float32(1.0), jnp.int32(0))
      >>> Nearest()(Matrix(weight, jnp.eye(2), grid), Uniform(bits=2))[0].tolist()
      [[0.0], [1.0]]
    """

    def __call__(self, matrix: Matrix, fmt: Format) -> tuple[Array, Array]:
        return snap(matrix.weight, matrix.grid, fmt), jnp.float32(0)


@checked
def quantize_layers(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    fmt: Format | Mapping[Path, Format],
    method: Method,
    *,
    select: Select = paths.matrices,
    sequential: bool = True,
    follow_float: bool = True,
    centred: bool = False,
    calibration: Calibration | None = None,
    factors: Sequence[float] = (),
    progress: bool = True,
) -> tuple[PyTree, dict[Path, LayerReport]]:
    """Quantize a model's weights from calibration batches, layer by layer in the order in which they run.

    One layer's statistics are held at a time. A layer's target are the outputs ``R W`` that the float model has there: with X
    its inputs in the model quantized so far, the quantized weight is made to follow
    ``W + inverse(X' X + damping) X' (R - X) W``, the least-squares solution.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode; with quantized activations, if the deployed model has them.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs; gone through once for every layer, so no generator for
        many batches.
      fmt: the number format, for all layers or by path. Channel and group axes are those of the leaf.
      method: `Nearest`, `Gptq`, `AdaRound`, or any other callable of that kind.
      select: which leaves; each must be the weight of a dot or of an ungrouped convolution.
      sequential: calibrate each layer on what the quantized layers before it give (one compilation a layer). False: on the
        float model.
      follow_float: aim at the float model's outputs, as above; False: at those of the float weight on the inputs at hand.
      centred: leave out of the error what a bias can make up for: use the covariance of the inputs instead of ``X' X``. For
        layers whose biases, or batch-norm statistics, are corrected afterwards.
      calibration: finds the range; None: the format's own.
      factors: multiples of that range to try, see `search_grid`.
      progress: show a bar.

    Returns:
      (variables, reports): the tree with packed leaves in place of those selected, and how well it went by path.

    Raises:
      ValueError: with every selected leaf that is no layer's weight or has no format, before anything is run; or for a layer
        whose inputs or weights are not finite.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> variables = {"w": jnp.array([[0.4], [1.0]])}
      >>> new, reports = quantize_layers(
      ...     lambda v, x: x @ v["w"], variables, [jnp.eye(2)], Uniform(bits=2), Nearest(), progress=False
      ... )
      >>> new["w"].qvalue.tolist(), round(reports["w"].error, 3)
      ([[0], [1]], 0.138)

    Source: sequential calibration: Frantar et al. 2023, "GPTQ", section 4; following the float model: Nagel et al. 2020,
    "Up or down?", equation 25; Li et al. 2025, "GPTAQ".
    """
    batches = list(batches) if iter(batches) is batches else batches
    layouts, formats = _checked(apply, variables, batches, fmt, select)
    leaves = paths.flatten(variables)
    dense = variables
    packed_leaves: dict[Path, QArray] = {}
    reports: dict[Path, LayerReport] = {}
    for path, layout in tqdm(layouts.items(), desc=type(method).__name__, unit="layer", disable=not progress):
        reference = variables if sequential and follow_float and packed_leaves else None
        inputs = layer_inputs(apply, dense if sequential else variables, batches, path, reference, layout)
        packed_leaves[path], reports[path] = quantize_leaf(
            path, leaves[path], inputs, formats[path], method, centred=centred, calibration=calibration, factors=factors
        )
        dense = paths.replace(dense, {path: packed_leaves[path].unpack()})
    return paths.replace(variables, packed_leaves), reports


def quantize_leaf(
    path: Path,
    leaf: Array,
    inputs: LayerInputs,
    fmt: Format,
    method: Method,
    *,
    centred: bool = False,
    calibration: Calibration | None = None,
    factors: Sequence[float] = (),
) -> tuple[QArray, LayerReport]:
    """Quantize one leaf, from the statistics of its inputs; see `quantize_layers`."""
    layout = inputs.layout
    weight = layout.matrix(leaf.astype(jnp.float32))
    hessian, shift = inputs.second, inputs.shift
    if centred:
        hessian -= _outer(inputs.mean, inputs.mean)
        shift -= _outer(inputs.mean, inputs.reference_mean - inputs.mean)
    target = followed(weight, hessian, shift)
    grid = search_grid(layout.leaf(target), hessian, layout, fmt, calibration, factors)
    entries = grid.matrix(fmt, layout)
    solve = lambda matrix: method(matrix, fmt)  # noqa: E731
    for _ in layout.stacked:
        solve = _each(solve)
    levels, damping = solve(Matrix(target, hessian, entries))
    if not bool(jnp.isfinite(levels).all() & jnp.isfinite(hessian).all() & jnp.isfinite(weight).all()):
        raise ValueError(f"{path}: the inputs of the layer, or its weights, are not finite, or its Hessian has no factor.")
    plain = search_grid(leaf, hessian, layout, fmt, calibration).matrix(fmt, layout)
    whole = jnp.sum(output_error(weight, hessian))
    error, nearest = (
        float(jnp.sum(output_error(new - target, hessian)) / jnp.where(whole > 0, whole, 1))
        for new in (levels, snap(weight, plain, fmt))
    )
    dead = int(jnp.sum(jnp.diagonal(inputs.second, axis1=-2, axis2=-1) == 0))
    report = LayerReport(error=error, nearest=nearest, damping=float(jnp.max(damping)), dead=dead)
    return packed_levels(layout.leaf(levels), *grid, fmt, leaf.dtype), report


def followed(weight: Array, hessian: Array, shift: Array, damping: float = 0.01) -> Array:
    """Return ``W + inverse(H + damping * mean(diag H)) S W``, with S from `LayerInputs.shift`.

    Example:
      >>> followed(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.full((1, 1), 0.5), damping=0.0).item()
      1.5
    """
    diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    mean = jnp.mean(diagonal, axis=-1)[..., None, None]
    identity = jnp.broadcast_to(jnp.eye(hessian.shape[-1]), hessian.shape)
    damped = hessian + jnp.where(mean > 0, damping * mean, 1.0) * identity
    product = jnp.matmul(shift, weight, precision=jax.lax.Precision.HIGHEST)
    return weight + jnp.linalg.solve(damped, product)


def _outer(a: Array, b: Array) -> Array:
    return a[..., :, None] * b[..., None, :]


def _each(solve: Any) -> Any:
    """The same for every layer of a stack, one after the other."""

    def stacked(matrix: Matrix) -> tuple[Array, Array]:
        weights, hessians, (scales, zeros) = matrix
        parts = zip(weights, hessians, scales, zeros, strict=True)
        found = [solve(Matrix(weight, hessian, Grid(scale, zero))) for weight, hessian, scale, zero in parts]
        return jnp.stack([levels for levels, _ in found]), jnp.stack([damping for _, damping in found])

    return stacked


def _checked(
    apply: Apply, variables: PyTree, batches: Iterable[Any], fmt: Any, select: Select
) -> tuple[dict[Path, Layout], dict[Path, Format]]:
    """Return the layers in the order in which they run, and their formats."""
    leaves = paths.select(variables, select)
    uses = weight_uses(trace(apply, variables, *first_batch(batches)), list(leaves))
    formats = formats_of(fmt, uses)
    with collect("post-training quantization: every selected leaf must have a format that fits it") as problems:
        for path, leaf in leaves.items():
            if path not in formats:
                problems.append(f"{path}: has no format; there are some for {', '.join(formats)}")
                continue
            try:
                formats[path].scale_shape(leaf.shape)
            except ValueError as error:
                problems.append(f"{path}: {error}")
    return {path: found[0].layout for path, found in uses.items()}, {path: formats[path] for path in uses}
