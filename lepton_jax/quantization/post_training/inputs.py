"""What one layer is fed, over calibration batches: in the quantized model and, at the same examples, in the float one."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.formats import Format
from lepton_jax.graph.moments import as_inputs, input_statistics
from lepton_jax.graph.trace import Apply, trace
from lepton_jax.graph.weights import Layout, weight_uses


class LayerInputs(NamedTuple):
    """Statistics of a layer's inputs; of layers stacked in one leaf, for each, with the leading axes `layout.stacked`.

    Attributes:
      second: ``X' X / rows``, (inputs, inputs).
      shift: ``X' (R - X) / rows``, with R the float model's inputs where X are the quantized one's; zero without a reference.
      mean: of X, (inputs,).
      reference_mean: of R, (inputs,).
      size: mean of ``|X|``, (inputs,).
      largest: of ``|X|``, (inputs,).
      layout: the leaf as a matrix.
    """

    second: Array
    shift: Array
    mean: Array
    reference_mean: Array
    size: Array
    largest: Array
    layout: Layout


def layer_inputs(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    path: Path,
    reference: PyTree | None = None,
    layout: Layout | None = None,
) -> LayerInputs:
    """Collect the statistics of one layer; memory holds a batch's inputs and two matrices of (inputs, inputs).

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: dense arrays.
      batches: calibration batches, each one array or a tuple of inputs.
      path: of the layer's weight.
      reference: the float model's variables.
      layout: the leaf as a matrix, if it is known; None: the model is traced once more to find it.

    Raises:
      ValueError: for no batch, or a leaf that is no layer's weight.

    Example:
      >>> found = layer_inputs(lambda v, x: x @ v["w"], {"w": jnp.ones((2, 1))}, [jnp.array([[1.0, -2.0], [3.0, 0.0]])], "w")
      >>> found.mean.tolist(), found.largest.tolist(), found.second.tolist()
      ([2.0, -1.0], [3.0, 2.0], [[5.0, -1.0], [-1.0, 2.0]])
    """
    totals = None
    for batch in batches:
        if totals is None:
            layout = layout or weight_uses(trace(apply, variables, *as_inputs(batch)), [path])[path][0].layout
            totals = _zeros(layout)
        totals = _step(apply, path, totals, variables, reference, *as_inputs(batch))
    if totals is None or layout is None:
        raise ValueError(f"{path}: post-training quantization needs at least one calibration batch; got none.")
    second, shift, mean, reference_mean, size, largest, rows = totals
    count = jnp.maximum(rows, 1).astype(jnp.float32)[..., None]
    square = count[..., None]
    return LayerInputs(second / square, shift / square, mean / count, reference_mean / count, size / count, largest, layout)


def one_layer(name: str, w: Array, inputs: Array) -> tuple[Layout, Array, Array]:
    """Return the layout of one layer ``y = x w``, its inputs as rows, float32, and their ``X' X``.

    Args:
      name: of the method, for the error.
      w: (inputs, outputs).
      inputs: (..., inputs).

    Raises:
      ValueError: for shapes that do not fit.

    Example:
      >>> one_layer("gptq", jnp.ones((1, 3)), jnp.array([[[3.0], [4.0]]]))[2].tolist()
      [[25.0]]
    """
    if w.ndim != 2 or inputs.ndim < 1 or inputs.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name}: w must be (inputs, outputs) and hessian_inputs (..., inputs); got {w.shape} and {inputs.shape}."
        )
    rows = inputs.reshape(-1, w.shape[0]).astype(jnp.float32)
    return Layout(shape=w.shape, index=np.arange(w.size).reshape(w.shape)), rows, _product(rows.T, rows)


def first_batch(batches: Iterable[Any]) -> tuple[Any, ...]:
    """Return the inputs of the first calibration batch.

    Raises:
      ValueError: if there is none.

    Example:
      >>> first_batch([1.0, 2.0])
      (1.0,)
    """
    for batch in batches:
        return as_inputs(batch)
    raise ValueError("post-training quantization needs at least one calibration batch; got none.")


def formats_of(fmt: Format | Mapping[Path, Format], layers: Iterable[Path]) -> dict[Path, Format]:
    """Return formats by path, of which one may stand for all layers.

    Example:
      >>> from lepton_jax.formats import NormalFloat4
      >>> [fmt.name for fmt in formats_of(NormalFloat4(), ["a", "b"]).values()]
      ['nf4', 'nf4']
    """
    return dict(fmt) if isinstance(fmt, Mapping) else dict.fromkeys(layers, fmt)


def _zeros(layout: Layout) -> tuple[Array, ...]:
    n = layout.index.shape[0]
    matrix, vector = jnp.zeros((*layout.stacked, n, n)), jnp.zeros((*layout.stacked, n))
    return (matrix, jnp.zeros_like(matrix), *(jnp.zeros_like(vector) for _ in range(4)), jnp.zeros(layout.stacked, jnp.int32))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(
    apply: Apply, path: Path, totals: tuple[Array, ...], variables: PyTree, reference: PyTree | None, *inputs: Any
) -> tuple[Array, ...]:
    """Add a batch's statistics."""
    mine = input_statistics(apply, [path], _itself, variables, *inputs)[path]
    others = mine if reference is None else input_statistics(apply, [path], _itself, reference, *inputs)[path]
    second, shift, mean, reference_mean, size, largest, count = totals
    for (use, rows), (_, float_rows) in zip(mine, others):
        # Rows are (*scans, rows, inputs); scans that do not take the leaf apart are more rows.
        levels = rows.ndim - 2
        order = (*use.levels, *(axis for axis in range(levels) if axis not in use.levels), levels, levels + 1)
        x, r = (jnp.transpose(part, order).reshape(*use.layout.stacked, -1, rows.shape[-1]) for part in (rows, float_rows))
        turned = jnp.swapaxes(x, -1, -2)
        second += _product(turned, x)
        if reference is not None:
            shift += _product(turned, r - x)
        mean += jnp.sum(x, axis=-2)
        reference_mean += jnp.sum(r, axis=-2)
        size += jnp.sum(jnp.abs(x), axis=-2)
        largest = jnp.maximum(largest, jnp.max(jnp.abs(x), axis=-2, initial=0.0))
        count += x.shape[-2]
    return second, shift, mean, reference_mean, size, largest, count


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _itself(rows: Array) -> Array:
    return rows
