"""Low-rank error compensation: two thin factors beside a quantized weight that give back most of what rounding took."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.packed import is_coded, is_packed, unpack
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.graph.layers import layers
from lepton_jax.graph.layout import Sides
from lepton_jax.graph.moments import as_inputs
from lepton_jax.graph.trace import Apply
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.qarray import QArray
from lepton_jax.quantization.post_training.inputs import LayerWalk, first_batch


@checked
def low_rank_error(difference: Array, hessian: Array, rank: int, damping: float = 1e-3) -> tuple[Array, Array]:
    """Return ``u v`` of a rank nearest to ``W - Q`` on the layer's outputs: least ``tr(D' H D)`` for ``D = W - Q - u v``.

    With ``H + damping * mean(diag H) I = L L'``, the best approximation of ``L' (W - Q)`` is its truncated singular value
    decomposition ``A S B``; then ``u = inverse(L') A S`` and ``v = B``.

    Args:
      difference: (inputs, outputs), W - Q.
      hessian: (inputs, inputs), ``X' X``, of any positive scale; with nothing but zeros, plain SVD.
      rank: at least 1; at most the smaller side counts.
      damping: keeps inputs that never vary in play; raised tenfold where the factorisation fails.

    Returns:
      (u, v), (inputs, rank) and (rank, outputs), float32.

    Example:
      >>> u, v = low_rank_error(jnp.array([[1.0, 0.0], [0.0, 0.5]]), jnp.diag(jnp.array([0.01, 1.0])), 1)
      >>> (u @ v).round(2).tolist()  # the smaller weight has the larger input
      [[0.0, 0.0], [0.0, 0.5]]

    Source: Yao et al. 2023, "ZeroQuant-V2" (the plain SVD); Zhang et al. 2025, "QERA", theorem 2 (with H).
    """
    check_whole("low_rank_error: rank", rank, 1)
    n = hessian.shape[-1]
    mean = jnp.trace(hessian) / n
    unit = jnp.where(mean > 0, hessian / jnp.where(mean > 0, mean, 1), jnp.eye(n))
    lower, damp = jnp.full_like(unit, jnp.nan), damping
    while not bool(jnp.isfinite(lower).all()) and damp < 1e3:
        lower, damp = jnp.linalg.cholesky(unit + damp * jnp.eye(n)), 10 * damp
    left, values, right = jnp.linalg.svd(lower.T @ difference.astype(jnp.float32), full_matrices=False)
    rank = min(rank, values.shape[0])
    u = jax.scipy.linalg.solve_triangular(lower.T, left[:, :rank] * values[None, :rank], lower=False)
    return u, right[:rank]


@checked
def compensate_errors(
    apply: Apply, variables: PyTree, quantized: PyTree, batches: Iterable[Any], rank: int, *, select: Select | None = None
) -> PyTree:
    """Put a low-rank correction beside every selected quantized leaf, layer by layer in the order in which they run.

    What a scan or experts stack gets a correction for each matrix.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: the float model's, arrays.
      quantized: the tree with `QArray` leaves.
      batches: calibration batches, each one array or a tuple of inputs.
      rank: of the corrections.
      select: which of the quantized leaves; None: all that can be corrected.

    Returns:
      the tree with `Adapted` leaves.

    Raises:
      ValueError: with every selected leaf that no low-rank matrix of its shape can correct: one that is neither used as it is
        nor transposed (the inputs, or outputs, in any order), as a grouped convolution is; or if no selected leaf is quantized.

    Warns:
      UserWarning: without a selector, with every quantized leaf that is left alone.

    Example:
      >>> from lepton_jax.quantization import Uniform, quantize
      >>> v = {"w": jnp.array([[0.3, 1.0], [0.6, 2.0]])}
      >>> q = {"w": quantize(v["w"], Uniform(bits=2))}
      >>> new = compensate_errors(lambda v, x: x @ v["w"], v, q, [jnp.eye(2)], rank=2)
      >>> bool(jnp.allclose(new["w"].unpack(), v["w"], atol=1e-2)), new["w"].correction.rank
      (True, 2)

    Source: Yao et al. 2023; Zhang et al. 2025.
    """
    batches = [as_inputs(batch) for batch in batches]
    held = paths.flatten(quantized, is_coded)
    coded = [path for path, leaf in held.items() if isinstance(leaf, QArray)]
    chosen = [path for path in coded if select is None or paths.matches(select, path, held[path], held)]
    if not chosen:
        raise ValueError(f"compensate_errors: no selected leaf is quantized; there are {', '.join(held)}.")
    wanted = None if select is None else lambda path, leaf: path in chosen
    found = layers(apply, variables, *first_batch(batches), select=wanted)
    usable = {path: layout.sides for path, layout in found.layouts.items() if path in chosen}
    reasons = {path: found.left.get(path, "it is no layer's weight") for path in chosen if path not in usable}
    reasons |= {path: "is no matrix of its inputs and outputs" for path, sides in usable.items() if sides is None}
    if reasons and select is None:
        named = "; ".join(f"{path}: {why}" for path, why in reasons.items())
        warnings.warn(f"compensate_errors: left alone: {named}.", stacklevel=2)
    elif reasons:
        with collect("compensate_errors: every leaf must be a matrix of its own; exclude the others by `select`") as problems:
            problems.extend(f"{path}: {why}" for path, why in reasons.items())
    floats, dense = paths.flatten(variables), unpack(quantized)
    walk = LayerWalk(apply, dense, batches, found)
    corrected: dict[Path, Adapted] = {}
    for path, sides in usable.items():
        if sides is None:
            continue
        inputs, base = walk.inputs(path, dense), held[path]
        difference = inputs.layout.matrix(floats[path].astype(jnp.float32) - base.unpack().astype(jnp.float32))
        corrected[path] = Adapted(base, LowRank(*_factors(difference, inputs.second, rank, sides), base.shape))
        dense = paths.replace(dense, {path: corrected[path].unpack()})
        walk.changed(path)
    return paths.replace(quantized, corrected, is_packed)


def _factors(difference: Array, hessian: Array, rank: int, sides: Sides) -> tuple[Array, Array]:
    """Return the factors of a correction of each matrix, (*stacked, rows, rank) and (*stacked, rank, columns) of the leaf."""
    stack = difference.shape[:-2]
    pairs = zip(difference.reshape(-1, *difference.shape[-2:]), hessian.reshape(-1, *hessian.shape[-2:]))
    several = [low_rank_error(one, its, rank) for one, its in pairs]
    u, v = (jnp.stack(parts).reshape(*stack, *parts[0].shape) for parts in zip(*several))
    u, v = u[..., np.argsort(sides.inputs), :], v[..., np.argsort(sides.outputs)]
    return (jnp.swapaxes(v, -1, -2), jnp.swapaxes(u, -1, -2)) if sides.turned else (u, v)
