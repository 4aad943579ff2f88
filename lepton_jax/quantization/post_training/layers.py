"""Quantizing a model's layers one after the other, by any method that quantizes one matrix."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from tqdm.auto import tqdm

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.formats import Format
from lepton_jax.formats.ranges import Calibration
from lepton_jax.graph.layers import Layers, layers
from lepton_jax.graph.layout import Layout, each_matrix
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.trace import Apply
from lepton_jax.leaves.qarray import QArray
from lepton_jax.quantization.post_training.grid import Grid, output_error, search_grid, snap
from lepton_jax.quantization.post_training.inputs import CalibratedLayers, LayerInputs, LayerWalk, first_batch, formats_of
from lepton_jax.quantization.weights import packed_levels


class Matrix(NamedTuple):
    """One layer, to be quantized.

    Attributes:
      weight: (inputs, outputs), float32: what the outputs shall be near.
      hessian: (inputs, inputs), float32: ``X' X``, of any positive scale; None for a method that says it uses no inputs.
      grid: scale and zero point of every entry, (inputs, outputs).
      rows: how many rows X had, a scalar; None where that is not known, as if they were without end.
    """

    weight: Array
    hessian: Array
    grid: Grid
    rows: Array | None = None


class Method(Protocol):
    """Chooses a level for every entry of a matrix. With ``uses_inputs = False`` it says that it looks at no Hessian."""

    def __call__(self, matrix: Matrix, fmt: Format) -> tuple[Array, Array]:
        """Return the levels, (inputs, outputs), float32, and the damping that the Hessian took, a scalar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """How a layer's outputs changed.

    Args:
      error: of the quantized outputs on the calibration inputs, ``|X (Q - W)|^2 / |X W|^2``; where none were collected, of the
        weights, ``|Q - W|^2 / |W|^2``.
      nearest: the same, had every weight been rounded to nearest on the calibration's own range.
      damping: what the Hessian took, times the mean of its diagonal; 0 for methods that take none.
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

    uses_inputs: ClassVar[bool] = False

    def __call__(self, matrix: Matrix, fmt: Format) -> tuple[Array, Array]:
        return snap(matrix.weight, matrix.grid, fmt), jnp.float32(0)


class Reports(dict[Path, LayerReport]):
    """What `quantize_layers` did, by path; printed, a table.

    Attributes:
      left: the leaves that look like weights and were left alone, and why.

    Example:
      >>> reports = Reports({"w": LayerReport(error=0.01, nearest=0.02, damping=0.0, dead=0)}, {"table": "is looked up"})
      >>> print(reports)
      layer  error   rounded to nearest  dead inputs
      w      0.01    0.02                0
      table  left: is looked up
    """

    def __init__(self, found: Mapping[Path, LayerReport], left: Mapping[Path, str]) -> None:
        super().__init__(found)
        self.left = dict(left)

    def __str__(self) -> str:
        rows: list[Sequence[Any]] = [("layer", "error", "rounded to nearest", "dead inputs")]
        rows += [(path, f"{one.error:.3g}", f"{one.nearest:.3g}", one.dead) for path, one in self.items()]
        return table([*rows, *((path, f"left: {why}", "", "") for path, why in self.left.items())], left=range(4))


@checked
def quantize_layers(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any] | CalibratedLayers,
    fmt: Format | int | str | Mapping[Path, Format | int | str],
    method: Method,
    *,
    select: Select | None = None,
    sequential: bool = True,
    follow_float: bool = True,
    centred: bool = False,
    calibration: Calibration | None = None,
    factors: Sequence[float] | None = None,
    progress: bool = True,
) -> tuple[PyTree, Reports]:
    """Quantize a model's weights from calibration batches, layer by layer in the order in which they run.

    What runs before a layer runs once; one layer's statistics are held at a time, and what runs through the model there, of
    all batches. A layer's target are the outputs ``R W`` that the float model has there: with X its inputs in the model
    quantized so far, the quantized weight is made to follow ``W + inverse(X' X + damping) X' (R - X) W``, the least-squares
    solution.

    Every matrix that a leaf stacks (the layers of a scan, the groups of a convolution, experts) is a layer of its own; those of
    one leaf are calibrated together.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode; with quantized activations, if the deployed model has them.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs; or, for ``sequential=False``, what `calibrate_layers`
        returned, for all formats and methods the same.
      fmt: the number format, for all layers or by path. Channel and group axes are those of the leaf; "out" and groups are
        found by its use, and stacked matrices have scales each.
      method: `Nearest`, `Gptq`, `AdaRound`, or any other callable of that kind, which `jax.vmap` can map.
      select: which leaves; each must be the weight of a dot or of a convolution. None: all that are; what else looks like a
        weight is left alone and named in `Reports.left`.
      sequential: calibrate each layer on what the quantized layers before it give. False: on the float model.
      follow_float: aim at the float model's outputs, as above; False: at those of the float weight on the inputs at hand.
      centred: leave out of the error what a bias can make up for: use the covariance of the inputs instead of ``X' X``. For
        layers whose biases, or batch-norm statistics, are corrected afterwards.
      calibration: finds the range; None: the format's own.
      factors: multiples of that range to try by the output error, see `search_grid`; none, ``()``: that range alone. None:
        where inputs are collected and no calibration is given, symmetric integers try both ends: with the largest weight half
        a step off, and exact.
      progress: show a bar.

    Returns:
      (variables, reports): the tree with packed leaves in place of those selected, and how well it went by path. Where a method
      needs no inputs (`Nearest`, not sequential, without factors), none are collected, and the errors are the weights' own.

    Raises:
      ValueError: with every selected leaf that is no layer's weight or has no format, before anything is run; or for a layer
        whose inputs or weights are not finite.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> variables = {"w": jnp.array([[0.4], [1.5]])}
      >>> new, reports = quantize_layers(
      ...     lambda v, x: x @ v["w"], variables, [jnp.eye(2)], Uniform(bits=2), Nearest(), progress=False
      ... )
      >>> new["w"].qvalue.tolist(), round(reports["w"].error, 3)
      ([[0], [1]], 0.066)

    Source: sequential calibration: Frantar et al. 2023, "GPTQ", section 4; following the float model: Nagel et al. 2020,
    "Up or down?", equation 25; Li et al. 2025, "GPTAQ".
    """
    known = batches if isinstance(batches, CalibratedLayers) else None
    if known is not None and sequential:
        raise ValueError("quantize_layers: collected statistics are the float model's; write sequential=False.")
    given = [] if known is not None else [as_inputs(batch) for batch in batches]
    found = layers(apply, variables, *first_batch(given), select=select) if known is None else known.layers
    formats = _formats(found, fmt)
    chosen = {path: leaf for path, leaf in paths.flatten(variables).items() if path in found.uses}
    walk = None
    if known is None and (getattr(method, "uses_inputs", True) or factors or (sequential and follow_float)):
        walk = LayerWalk(apply, variables, given, found, follow=sequential and follow_float)
    dense = variables
    packed_leaves: dict[Path, QArray] = {}
    reports: dict[Path, LayerReport] = {}
    options: dict[str, Any] = {"centred": centred, "calibration": calibration, "factors": factors}
    for path, layout in tqdm(found.layouts.items(), desc=type(method).__name__, unit="layer", disable=not progress):
        inputs = walk.inputs(path, dense) if walk is not None else None if known is None else known[path]
        leaf, reports[path] = quantize_leaf(path, chosen[path], layout, inputs, formats[path], method, **options)
        packed_leaves[path] = leaf
        if sequential and walk is not None:
            dense = paths.replace(dense, {path: leaf.unpack()})
            walk.changed(path)
    return paths.replace(variables, packed_leaves), Reports(reports, found.left)


def quantize_leaf(
    path: Path,
    leaf: Array,
    layout: Layout,
    inputs: LayerInputs | None,
    fmt: Format,
    method: Method,
    *,
    centred: bool = False,
    calibration: Calibration | None = None,
    factors: Sequence[float] | None = None,
) -> tuple[QArray, LayerReport]:
    """Quantize one leaf, from the statistics of its inputs; see `quantize_layers`."""
    weight = layout.matrix(leaf.astype(jnp.float32))
    target, hessian, dead = weight, None, 0
    if inputs is not None:
        hessian, shift = inputs.second, inputs.shift
        if centred:
            hessian -= _outer(inputs.mean, inputs.mean)
        if shift is not None:
            shift -= _outer(inputs.mean, inputs.reference_mean - inputs.mean) if centred else 0
            target = followed(weight, hessian, shift)
        dead = int(jnp.sum(jnp.diagonal(inputs.second, axis1=-2, axis2=-1) == 0))
    grid = search_grid(layout.leaf(target), hessian, layout, fmt, calibration, factors)
    rows = None if inputs is None else inputs.rows
    matrices = Matrix(target, hessian, grid.matrix(fmt, layout), rows)  # type: ignore[arg-type]  # None where none is looked at
    levels, damping = each_matrix(lambda matrix: method(matrix, fmt), matrices, layout)
    if not all(bool(jnp.isfinite(part).all()) for part in (levels, weight, *(() if hessian is None else (hessian,)))):
        raise ValueError(f"{path}: the inputs of the layer, or its weights, are not finite, or its Hessian has no factor.")
    plain = search_grid(leaf, hessian, layout, fmt, calibration, ()).matrix(fmt, layout)
    whole = jnp.sum(output_error(weight, hessian))
    error, nearest = (
        float(jnp.sum(output_error(new - target, hessian)) / jnp.where(whole > 0, whole, 1))
        for new in (levels, snap(weight, plain, fmt))
    )
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


def _formats(found: Layers, fmt: Any) -> dict[Path, Format]:
    """Return the format of every layer, placed by the axes of its leaf."""
    check_finite("post-training quantization", found.leaves)
    formats = formats_of(fmt, found.uses)
    with collect("post-training quantization: every selected leaf must have a format that fits it") as problems:
        for path, layout in found.layouts.items():
            if path not in formats:
                problems.append(f"{path}: has no format; there are some for {', '.join(formats)}")
                continue
            formats[path] = formats[path].at(found.axes(path))
            try:
                formats[path].scale_shape(layout.shape)
            except ValueError as error:
                problems.append(f"{path}: {error}")
    return formats
