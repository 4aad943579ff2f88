"""SmoothQuant: move the outliers of activations into the weights that they meet."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.graph.layers import Layers, layers
from lepton_jax.graph.layout import Layout
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.scaling import Scaling, input_scalings
from lepton_jax.graph.trace import Apply
from lepton_jax.quantization.post_training.inputs import LayerWalk, first_batch


@checked
def smooth_quant(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    *,
    strength: float = 0.5,
    select: Select | None = None,
) -> tuple[PyTree, dict[Path, str]]:
    """Divide the channels of layers' inputs by factors, and multiply the weights by them; the function stays as it is.

    Channel j of an input X gets ``s_j = max|X_j|^strength / max|W_j|^(1 - strength)``, over all weights W that share the input.
    What makes the input (a norm's scale and bias, a layer's outputs) is found in the graph and divided by s. Quantizing
    activations and weights to 8 bits afterwards then loses less.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs.
      strength: in [0, 1); 0 evens out the weights alone, nearly 1 the activations alone.
      select: which layers; others that share an input with them are changed too. None: all.

    Returns:
      (variables, left): dense variables, and why by path, for every selected layer whose input cannot be scaled, or leaf that
      looks like a weight but is none of a layer.

    Raises:
      ValueError: for no batch, a strength outside [0, 1), or selected leaves that are no layer's weight.

    Example:
      >>> def apply(v, x):
      ...     return (x * v["scale"][None]) @ v["w"]
      >>> v = {"scale": jnp.array([1.0, 100.0]), "w": jnp.ones((2, 2))}
      >>> new, left = smooth_quant(apply, v, [jnp.ones((1, 2))], select="w")
      >>> new["scale"].tolist(), new["w"].tolist(), left
      ([1.0, 10.0], [[1.0, 1.0], [10.0, 10.0]], {})

    Source: Xiao, Lin, Seznec, Wu, Demouth, Han 2023, "SmoothQuant", equation 4. Deviation: wherever the graph allows it, not
    after layer norms alone.
    """
    check_fraction("smooth_quant: strength", strength)
    found, scalings, left, walk = scalings_of(apply, variables, batches, select)
    for scaling in scalings:
        fed = [path for path in scaling.side(-1) if path in found.uses]
        inputs = walk.inputs(fed[0], walk.floats)
        activations = per_channel(inputs.largest, row_channels(scaling, inputs.layout, fed[0]), scaling.channels)
        weights = largest_weights(scaling, variables, fed)
        factors = weights ** (1 - strength) / jnp.where(activations > 0, activations, 1) ** strength
        factors = jnp.where((activations > 0) & (weights > 0), factors, 1.0)
        variables = scaling.apply(variables, factors)
    return variables, left


def scalings_of(
    apply: Apply, variables: PyTree, batches: Iterable[Any], select: Select | None
) -> tuple[Layers, list[Scaling], dict[Path, str], LayerWalk]:
    """Return the selected layers, the scalings of their inputs, why other layers have none, and what their inputs are.

    A layer's input is changed by its own scaling alone, so the inputs of all layers are those of the model as it was.
    """
    batches = [as_inputs(batch) for batch in batches]
    found = layers(apply, variables, *first_batch(batches), select=select)
    scalings, left = input_scalings(found.traced, list(found.uses))
    return found, scalings, {**left, **found.left}, LayerWalk(apply, variables, batches, found)


def row_channels(scaling: Scaling, layout: Layout, path: Path) -> np.ndarray:
    """Return the channel of each row (input) of a layer's matrices, (*stacked, inputs).

    Example:
      >>> layout = Layout(shape=(3, 2), index=np.arange(6).reshape(3, 2).T)  # used transposed
      >>> row_channels(Scaling(channels=2, leaves={"w": (np.array([[1, 0]]), -1)}), layout, "w").tolist()
      [1, 0]
    """
    index = np.broadcast_to(scaling.leaves[path][0], layout.shape).reshape(-1)
    return index[layout.index[..., 0]]


def per_channel(values: Array, channels: np.ndarray, count: int) -> Array:
    """Return the largest of the rows' values for each channel; a convolution has several rows a channel.

    Example:
      >>> per_channel(jnp.array([1.0, 2.0, 3.0]), np.array([0, 1, 0]), 2).tolist()
      [3.0, 2.0]
    """
    return jnp.zeros(count).at[channels.reshape(-1)].max(values.reshape(-1))


def largest_weights(scaling: Scaling, variables: PyTree, leaves: Sequence[Path]) -> Array:
    """Return the largest magnitude in each channel, over several leaves.

    Example:
      >>> scaling = Scaling(channels=2, leaves={"w": (np.array([[0], [1]]), -1)})
      >>> largest_weights(scaling, {"w": jnp.array([[1.0, -3.0], [2.0, 0.0]])}, ["w"]).tolist()
      [3.0, 2.0]
    """
    held: Mapping[Path, Array] = paths.flatten(variables)
    largest = jnp.zeros(scaling.channels)
    for path in leaves:
        index = np.broadcast_to(scaling.leaves[path][0], held[path].shape)
        largest = largest.at[index.reshape(-1)].max(jnp.abs(held[path]).astype(jnp.float32).reshape(-1))
    return largest
