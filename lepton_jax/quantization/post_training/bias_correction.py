"""Bias correction: give back the mean that rounding took from a layer's outputs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import is_packed, unpack
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.graph.flat import FlatGraph
from lepton_jax.graph.layers import layers
from lepton_jax.graph.layout import Use
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.scaling_rules import Channels, alternatives
from lepton_jax.graph.trace import Apply, Traced
from lepton_jax.quantization.post_training.inputs import LayerWalk, first_batch

_THROUGH = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy")


class Shift(NamedTuple):
    """The variable that is added to a layer's output.

    Attributes:
      path: of the variable.
      outputs: broadcasts to its shape: which output each of its entries is added to; in a scan, those of all layers are
        numbered one layer after the other.
      sign: 1 if it is added (a bias), -1 if it is subtracted (a batch norm's mean).
      order: the numbers of the layers that a scan takes apart, in the order in which they run; of one that none does: (0,).
      place: of the scan; None: none.
    """

    path: Path
    outputs: np.ndarray
    sign: int
    order: tuple[int, ...]
    place: Any


@checked
def correct_biases(
    apply: Apply, variables: PyTree, quantized: PyTree, batches: Iterable[Any], *, select: Select | None = None
) -> tuple[PyTree, dict[Path, str]]:
    """Shift biases so that the mean of every layer's outputs is that of the float model, layer by layer.

    ``bias += mean(R) W - mean(X) Q``, with R and X the layer's inputs in the float and in the quantized model. A batch norm
    that follows has its running mean shifted instead. Layers of a scan are corrected in the order in which they run, too.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: the float model's, arrays.
      quantized: the tree with packed leaves (or dense ones) in place of some weights.
      batches: calibration batches, each one array or a tuple of inputs.
      select: which layers; None: all.

    Returns:
      (variables, left): the tree `quantized` with other biases, and why by path, for every selected layer without one, or leaf
      that looks like a weight but is none of a layer.

    Raises:
      ValueError: for no batch, or selected leaves that are no layer's weight.

    Example:
      >>> def apply(v, x):
      ...     return x @ v["w"] + v["bias"][None]
      >>> v = {"bias": jnp.zeros(1), "w": jnp.array([[0.5]])}
      >>> new, left = correct_biases(apply, v, {**v, "w": jnp.array([[1.0]])}, [jnp.array([[1.0], [3.0]])], select="w")
      >>> new["bias"].tolist(), left
      ([-1.0], {})

    Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2 and
    appendix D (empirical); the inputs' own shift is counted too.
    """
    batches = [as_inputs(batch) for batch in batches]
    found = layers(apply, variables, *first_batch(batches), select=select)
    shifts, left = find_shifts(found.traced, found.uses)
    floats, dense = paths.flatten(variables), unpack(quantized)
    walk = LayerWalk(apply, variables, batches, found, follow=True)
    for path in floats:
        walk.changed(path)  # any of them may be another in the quantized model
    changed = {}
    for _, together in groupby(shifts.items(), lambda item: item[1].place):
        several = dict(together)
        for layer in next(iter(several.values())).order:
            for path, shift in several.items():
                inputs, held = walk.inputs(path, dense), paths.flatten(dense)
                before, after = (inputs.layout.matrix(leaf.astype(jnp.float32)) for leaf in (floats[path], held[path]))
                missing = _through(inputs.reference_mean, before) - _through(inputs.mean, after)
                bias = held[shift.path]
                here = shift.outputs // (missing.size // len(shift.order)) == layer
                new = bias.astype(jnp.float32) + shift.sign * jnp.where(here, missing[shift.outputs], 0)
                changed[shift.path] = new.astype(bias.dtype)
                dense = paths.replace(dense, {shift.path: changed[shift.path]})
                walk.changed(shift.path)
    return paths.replace(quantized, changed, is_packed), {**left, **found.left}


def _through(mean: Array, matrix: Array) -> Array:
    """The mean of a layer's outputs, flat, from that of its inputs."""
    return jnp.matmul(mean[..., None, :], matrix, precision="highest").reshape(-1)


def find_shifts(traced: Traced, uses: Mapping[Path, Sequence[Use]]) -> tuple[dict[Path, Shift], dict[Path, str]]:
    """Find the variable that is added to each layer's output, or say why there is none."""
    graphs = list(FlatGraph(traced).all())
    found: dict[Path, Shift] = {}
    left: dict[Path, str] = {}
    for path, several in uses.items():
        graph = next((graph for graph in graphs if several[0].operation in graph.places), None)
        if len(several) > 1 or graph is None:
            left[path] = "it is used several times, or within a loop or a branch"
        elif len(several[0].levels) < len(graph.steps):
            left[path] = "all steps of a scan share it"
        elif (shift := _forwards(graph, several[0])) is None:
            left[path] = "no variable of its own is added to its outputs"
        elif any(shift.path == other.path for other in found.values()):
            left[path] = f"{shift.path} is added to another layer's outputs too"
        else:
            found[path] = shift
    return found, left


def _forwards(graph: FlatGraph, use: Use) -> Shift | None:
    """Follow a layer's output to the addition of a variable."""
    node = graph.nodes[graph.places[use.operation]]
    value, own = node.results[0], _outputs(node.eqn, use)
    while True:
        users = [graph.nodes[i] for i in graph.touching[value] if value in graph.nodes[i].operands]
        if len(users) != 1 or value in graph.ends:
            return None
        [node] = users
        slot = node.operands.index(value)
        name = node.eqn.primitive
        if name in _THROUGH:
            options = alternatives(node.eqn, {slot: own}, node.fixed)
            if not options:
                return None
            value, own = node.results[0], options[0][-1]
        elif name in ("add", "sub") and node.fixed[1 - slot] and not (name == "sub" and slot == 1):
            leaf = _backwards(graph, node.operands[1 - slot], own)
            if leaf is None:
                return None
            count = int(np.prod(use.layout.stacked[len(use.levels) :], dtype=int)) * use.layout.outputs
            order = tuple(int(number) for number in graph.order.reshape(-1))
            return Shift(
                leaf[0], graph.whole(leaf[1], count), -1 if name == "sub" else 1, order, graph if graph.steps else None
            )
        else:
            return None


def _outputs(eqn: Any, use: Use) -> Channels:
    """Number a layer's outputs in the order of its weight's columns."""
    shape = eqn.out_avals[0].shape
    if eqn.primitive == "conv_general_dilated":
        axes: Sequence[int] = (eqn.params["dimension_numbers"].out_spec[1],)
    else:
        contracting, batch = (sides[use.operand] for sides in eqn.params["dimension_numbers"])
        width = len(eqn.in_avals[use.operand].shape) - len(contracting) - len(batch)
        ends = range(len(batch), len(batch) + width) if use.operand == 0 else range(len(shape) - width, len(shape))
        axes = (*range(len(batch)), *ends)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return Channels(np.arange(int(np.prod(sizes))).reshape(sizes), 1)


def _backwards(graph: FlatGraph, value: int, own: Channels) -> tuple[Path, np.ndarray] | None:
    """Follow an addend back to the variable that it is, moved."""
    while value not in graph.leaf_of:
        touching = [graph.nodes[i] for i in graph.touching.get(value, ())]
        makers = [node for node in touching if value in node.results]
        if len(touching) - len(makers) > 1:
            return None
        if not makers or makers[0].eqn.primitive not in (*_THROUGH, "broadcast_in_dim"):
            return None
        options = alternatives(makers[0].eqn, {-1: own}, makers[0].fixed)
        if not options:
            return None
        value, own = makers[0].operands[0], options[0][0]
    path = graph.leaf_of[value]
    place = graph.traced.variables.index(path)
    if own.index.shape != tuple(graph.traced.in_avals[place].shape)[len(graph.steps) :] or len(graph.touching[value]) > 1:
        return None
    return path, own.index
