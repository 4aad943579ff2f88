"""What layers are fed, over calibration batches: in the quantized model and, at the same examples, in the float one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.formats import Format, named_format
from lepton_jax.graph.layers import Layers, layers
from lepton_jax.graph.layout import Layout
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.passage import Track
from lepton_jax.graph.statistics import gathered
from lepton_jax.graph.trace import Apply


class LayerInputs(NamedTuple):
    """Statistics of a layer's inputs; of matrices stacked in one leaf, for each, with the leading axes `layout.stacked`.

    Attributes:
      second: ``X' X / rows``, (inputs, inputs).
      shift: ``X' (R - X) / rows``, with R the float model's inputs where X are the quantized one's; None without it.
      mean: of X, (inputs,).
      reference_mean: of R, (inputs,).
      size: mean of ``|X|``, (inputs,).
      largest: of ``|X|``, (inputs,).
      rows: how many rows (examples, positions, patches) they were, int32.
      layout: the leaf as a matrix.
    """

    second: Array
    shift: Array | None
    mean: Array
    reference_mean: Array
    size: Array
    largest: Array
    rows: Array
    layout: Layout


class CalibratedLayers(dict[Path, LayerInputs]):
    """The statistics of every layer's inputs in the float model, to be used by several calls; see `calibrate_layers`.

    Attributes:
      layers: the layers.

    Example:
      >>> from lepton_jax.quantization import Nearest, Uniform, quantize_layers
      >>> apply, v = lambda v, x: x @ v["w"], {"w": jnp.array([[0.4], [1.0]])}
      >>> found = calibrate_layers(apply, v, [jnp.eye(2)])
      >>> for bits in (2, 8):
      ...     options = {"sequential": False, "progress": False}
      ...     _, reports = quantize_layers(apply, v, found, Uniform(bits), Nearest(), **options)
      ...     reports["w"].error < 0.2
      True
      True
    """

    def __init__(self, found: Mapping[Path, LayerInputs], layers: Layers) -> None:
        super().__init__(found)
        self.layers = layers


@checked
def calibrate_layers(apply: Apply, variables: PyTree, batches: Iterable[Any], select: Select | None = None) -> CalibratedLayers:
    """Collect the statistics of all layers, in one pass through the model with each batch.

    Give them to `quantize_layers` in place of the batches, with ``sequential=False``, for as many formats and methods as you
    like.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs.
      select: which layers; None: all.

    Raises:
      ValueError: for no batch, or selected leaves that are no layer's weights.

    Example:
      >>> found = calibrate_layers(lambda v, x: x @ v["w"], {"w": jnp.ones((2, 1))}, [jnp.array([[1.0, -2.0], [3.0, 0.0]])])
      >>> found["w"].mean.tolist(), found["w"].largest.tolist(), found["w"].second.tolist()
      ([2.0, -1.0], [3.0, 2.0], [[5.0, -1.0], [-1.0, 2.0]])
    """
    batches = [as_inputs(batch) for batch in batches]
    found = layers(apply, variables, *first_batch(batches), select=select)
    walk = LayerWalk(apply, variables, batches, found)
    return CalibratedLayers({path: walk.inputs(path, variables) for path in found.uses}, found)


class LayerWalk:
    """Goes through a model that changes layer by layer, and at the same examples through the float one.

    What runs before a layer runs once; memory holds what runs through the model there, of all batches.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      floats: the float model's variables.
      batches: the inputs, each a tuple.
      layers: those whose inputs are asked for.
      follow: whether the float model's inputs are wanted too.

    Example:
      >>> v, x = {"a": jnp.ones((1, 1)), "b": jnp.ones((1, 1))}, jnp.ones((1, 1))
      >>> apply = lambda v, x: x @ v["a"] @ v["b"]
      >>> walk = LayerWalk(apply, v, [(x,)], layers(apply, v, x), follow=True)
      >>> changed = {**v, "a": jnp.full((1, 1), 3.0)}
      >>> walk.changed("a")
      >>> found = walk.inputs("b", changed)
      >>> found.mean.tolist(), found.reference_mean.tolist()
      ([3.0], [1.0])
    """

    def __init__(
        self, apply: Apply, floats: PyTree, batches: Sequence[tuple[Any, ...]], layers: Layers, follow: bool = False
    ) -> None:
        self.floats, self.layouts, self.follow = floats, layers.layouts, follow
        self.mine = Track(apply, floats, batches, list(layers.uses))
        self.other: Track | None = None  # until something changes, it is the same

    def inputs(self, path: Path, variables: PyTree) -> LayerInputs:
        """Return the statistics of a layer's inputs, given the variables as they are now."""
        layout = self.layouts[path]
        totals = _zeros(layout, self.other is not None)
        if self.other is None:
            for passage, given in self.mine.at(path, variables):
                totals = gathered(passage, path, _add, totals, given)
        else:
            for (passage, given), (_, floats) in zip(self.mine.at(path, variables), self.other.at(path, self.floats)):
                totals = gathered(passage, path, _add, totals, given, floats)
        second, shift, mean, reference_mean, size, largest, rows = totals
        count = jnp.maximum(rows, 1).astype(jnp.float32)[..., None]
        square = count[..., None]
        shift = None if shift is None else shift / square
        return LayerInputs(second / square, shift, mean / count, reference_mean / count, size / count, largest, rows, layout)

    def changed(self, path: Path) -> None:
        """Say that a variable is another from now on."""
        if self.follow and self.other is None:
            self.other = self.mine.copy()
        self.mine.changed(path)


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


def formats_of(fmt: Format | int | str | Mapping[Path, Format | int | str], layers: Iterable[Path]) -> dict[Path, Format]:
    """Return formats by path, of which one may stand for all layers; each may be a short name.

    Raises:
      TypeError: for what is no number format.

    Example:
      >>> from lepton_jax.formats import NormalFloat4
      >>> [fmt.name for fmt in formats_of(NormalFloat4(), ["a", "b"]).values()]
      ['nf4', 'nf4']
    """
    given = dict(fmt) if isinstance(fmt, Mapping) else dict.fromkeys(layers, fmt)
    found = {path: named_format(f"format of {path}", one) for path, one in given.items()}
    with collect("post-training quantization: takes number formats, e.g. Uniform(bits=4) or 'int4'", TypeError) as problems:
        problems.extend(f"{path}: got {one!r}" for path, one in found.items() if not isinstance(one, Format))
    return found


def _zeros(layout: Layout, followed: bool) -> tuple[Any, ...]:
    matrix, vector = (jnp.zeros((*layout.stacked, *(layout.inputs,) * axes)) for axes in (2, 1))
    return (
        matrix,
        jnp.zeros_like(matrix) if followed else None,
        *(jnp.zeros_like(vector) for _ in range(4)),
        jnp.zeros(layout.stacked, jnp.int32),
    )


def _add(totals: tuple[Any, ...], x: Array, r: Array | None) -> tuple[Any, ...]:
    """Add the statistics of rows (*stacked, rows, inputs), and of the float model's there."""
    second, shift, mean, reference_mean, size, largest, count = totals
    turned = jnp.swapaxes(x, -1, -2)
    second += _product(turned, x)
    if r is not None:
        shift += _product(turned, r - x)
    mean += jnp.sum(x, axis=-2)
    reference_mean += jnp.sum(x if r is None else r, axis=-2)
    size += jnp.sum(jnp.abs(x), axis=-2)
    largest = jnp.maximum(largest, jnp.max(jnp.abs(x), axis=-2, initial=0.0))
    return second, shift, mean, reference_mean, size, largest, count + x.shape[-2]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
