"""Cross-layer equalisation: give the channels between two layers the same range in both."""

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Path, PyTree, Select
from lepton_jax.graph.layers import layers
from lepton_jax.graph.scaling import Scaling, input_scalings
from lepton_jax.graph.trace import Apply
from lepton_jax.quantization.post_training.smooth_quant import largest_weights


@checked
def equalize(
    apply: Apply, variables: PyTree, *inputs: Any, select: Select | None = None, iterations: int = 20
) -> tuple[PyTree, dict[Path, str]]:
    """Scale the channels between layers so that the weights on both sides have equal ranges; the function stays as it is.

    For a channel with the largest weight r_1 in what makes it and r_2 in what it is fed to, both become ``sqrt(r_1 r_2)``. That
    helps formats with one scale a tensor. Batch norms stand between the layers until they are folded: pass what
    `fold_batch_norm` returns.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      *inputs: example inputs, or their shapes.
      select: which layers; a scaling needs selected ones on both sides. None: all.
      iterations: through all pairs of layers; a layer between two others is in two pairs.

    Returns:
      (variables, left): dense variables, and why by path, for every selected layer whose input was not scaled.

    Raises:
      ValueError: for selected leaves that are no layer's weight.

    Example:
      >>> def apply(v, x):
      ...     return jnp.maximum(x @ v["one"], 0) @ v["two"]
      >>> new, left = equalize(apply, {"one": jnp.array([[1.0, 16.0]]), "two": jnp.ones((2, 1))}, jnp.ones((1, 1)))
      >>> new["one"].tolist(), new["two"].tolist(), list(left)
      ([[1.0, 4.0]], [[1.0], [4.0]], ['one'])

    Source: Nagel, van Baalen, Blankevoort, Welling 2019, "Data-free quantization through weight equalization and bias
    correction", section 4.1, equation 11. Deviation: high biases are not absorbed.
    """
    check_whole("equalize: iterations", iterations, 1)
    found = layers(apply, variables, *inputs, select=select)
    scalings, left = input_scalings(found.traced, list(found.uses))
    left |= found.left
    usable: list[tuple[Scaling, list[Path], list[Path]]] = []
    for scaling in scalings:
        made, fed = ([path for path in scaling.side(sign) if path in found.uses] for sign in (1, -1))
        if made:
            usable.append((scaling, made, fed))
        else:
            left.update(dict.fromkeys(fed, f"no selected layer makes its input, but {', '.join(scaling.side(1))}"))

    @jax.jit
    def once(variables: PyTree) -> PyTree:
        for scaling, made, fed in usable:
            before, after = (largest_weights(scaling, variables, leaves) for leaves in (made, fed))
            alive = (before > 0) & (after > 0)
            factors = jnp.sqrt(jnp.where(alive, after, 1) / jnp.where(alive, before, 1))
            variables = scaling.apply(variables, factors)
        return variables

    for _ in range(iterations if usable else 0):
        variables = once(variables)
    return variables, left
