"""SparseGPT: one-shot pruning that lets the weights that are left make up for those removed."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction, check_whole, collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.graph.layers import layers
from lepton_jax.graph.layout import Layout, each_matrix
from lepton_jax.graph.moments import as_inputs, inverse_cholesky, oracle_damping
from lepton_jax.graph.passage import Track
from lepton_jax.graph.statistics import gathered
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.masks import keep_count, keep_some
from lepton_jax.pruning.threshold import top_of_all

Pattern = float | tuple[int, int]
"""A sparsity (the fraction removed), or (n, m): n of every m consecutive inputs are kept."""


@checked
def sparsegpt(
    weight: Array, hessian: Array, pattern: Pattern, *, block_size: int = 128, damping: float | Array = 0.01
) -> tuple[Array, Array]:
    """Prune one layer, and change the weights that are left so that its outputs move as little as possible.

    Inputs are gone through in order. Removing ``w_i`` of an output costs ``w_i**2 / (inverse H_{i:})_{00}``, and the inputs
    after i take over what they can: ``w_{i:} -= w_i / (inverse H_{i:})_{00} * (inverse H_{i:})_{0,:}``. Which weights go is
    chosen at the start of each block of inputs, by that cost, over all outputs together (for n of m: at the start of each m
    inputs, in every output).

    Args:
      weight: (inputs, outputs); float32, or narrower and then computed in float32.
      hessian: (inputs, inputs), ``X' X`` of the inputs, of any positive scale.
      pattern: a sparsity in [0, 1), or (n, m).
      block_size: inputs a block; for n of m a multiple of m. The paper's 128 is small against its layers; for layers with few
        inputs, at high sparsity, smaller blocks often choose better.
      damping: see `inverse_cholesky`; raised tenfold as often as needed.

    Returns:
      (weight, mask): of the weight's shape and dtype, exact zeros where the mask is False; the mask has exactly
      ``keep_some(size, sparsity)`` True, or n in every m inputs of every output. Weights of inputs that were always zero go
      first, and touch no others.

    Raises:
      ValueError: for shapes that do not fit, a sparsity outside [0, 1), n > m, or m that divides not inputs and blocks.

    Example:
      >>> weight, inputs = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 1.0], [1.0, 1.0]])  # two inputs, always the same
      >>> new, mask = sparsegpt(weight, inputs.T @ inputs, 0.5, damping=1e-4)
      >>> new.round(2).tolist(), mask.tolist()
      ([[0.0], [3.0]], [[False], [True]])

    Source: Frantar, Alistarh 2023, "SparseGPT: Massive language models can be accurately pruned in one-shot", algorithm 1 and
    section 3.3. Deviation: the number removed is exact, its rounding spread over the blocks.
    """
    rows, columns = _checked(weight, hessian, pattern, block_size)
    size = min(block_size, rows)
    blocks = -(-rows // size)
    if isinstance(pattern, tuple):
        keeps = np.zeros(blocks, np.int32)
        group = pattern
    else:
        ends = np.minimum(size * np.arange(1, blocks + 1), rows)
        # Of what stands before the end of a block, its share; so the last one makes the total exact.
        shares = [int(keep_count(int(end) * columns, pattern)) for end in ends]
        shares[-1] = int(keep_some(rows * columns, pattern))
        keeps = np.diff(shares, prepend=0).astype(np.int32)
        group = (0, 1)
    return _solve(weight, hessian, jnp.asarray(keeps), jnp.float32(damping), size, *group)


@checked
def sparsegpt_prune(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    pattern: Pattern | Mapping[Path, Pattern],
    *,
    select: Select | None = None,
    sequential: bool = True,
    block_size: int = 128,
    damping: float | None = None,
    progress: bool = True,
) -> tuple[PyTree, dict[Path, Array]]:
    """Prune a model in one shot, layer by layer in the order in which they run, from calibration batches.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: calibration batches, each one array or a tuple of inputs.
      pattern: a sparsity or (n, m), for all layers or by path.
      select: which leaves; each must be the weight of a dot or of a convolution. None: all that are; what else looks like a
        weight is left alone and named in a warning.
      sequential: calibrate each layer on what the pruned layers before it give; what runs before a layer runs once. False: all
        on the dense model. The matrices that a leaf stacks (layers of a scan, groups of a convolution, experts) are calibrated
        together, and each is pruned by itself.
      block_size: see `sparsegpt`.
      damping: see `sparsegpt`. None: what the number of rows asks for (`oracle_damping`), at least 0.01. With 0.01 and fewer
        rows than inputs, outputs on other rows are often further off than by pruning the smallest weights.
      progress: show a bar.

    Returns:
      (variables, masks): a tree like the given one, and the masks by path. To train on under the masks, give them to `prune`:
      ``prune(sparsity, criterion=Given(by_path=masks), ...)``.

    Raises:
      ValueError: with every selected leaf that is no layer's weight or that the pattern does not fit, before anything is run.

    Warns:
      UserWarning: without a selector, with every leaf that looks like a weight and is left alone.

    Example:
      >>> variables = {"w": jnp.array([[1.0], [2.0]])}
      >>> new, masks = sparsegpt_prune(lambda v, x: x @ v["w"], variables, [jnp.ones((200, 2))], 0.5, progress=False)
      >>> masks["w"].tolist(), new["w"].round(1).tolist()
      ([[False], [True]], [[0.0], [3.0]])

    Source: Frantar, Alistarh 2023, section 3.4 and 4. Deviation: the damping by the number of rows.
    """
    batches = [as_inputs(batch) for batch in batches]
    if not batches:
        raise ValueError("sparsegpt_prune needs at least one calibration batch; got none.")
    found = layers(apply, variables, *batches[0], select=select)
    found.warn("sparsegpt_prune")
    check_finite("sparsegpt_prune", found.leaves)
    patterns = _patterns(pattern, found.layouts, block_size)
    track = Track(apply, variables, batches, list(found.uses))
    masks: dict[Path, Array] = {}
    pruned = variables
    for path, layout in tqdm(found.layouts.items(), desc="SparseGPT", unit="layer", disable=not progress):
        hessian, rows = (jnp.zeros((*layout.stacked, layout.inputs, layout.inputs)), jnp.zeros(layout.stacked, jnp.int32))
        for passage, given in track.at(path, pruned if sequential else variables):
            hessian, rows = gathered(passage, path, _add, (hessian, rows), given)
        solve = partial(_one, patterns[path], block_size, damping)
        matrix, mask = each_matrix(solve, (layout.matrix(found.leaves[path]), hessian, rows), layout)
        if not bool(jnp.isfinite(matrix).all()):
            raise ValueError(f"{path}: the inputs of the layer, or its weights, are not finite, or its Hessian has no factor.")
        masks[path] = layout.leaf(mask)
        pruned = paths.replace(pruned, {path: layout.leaf(matrix)})
        if sequential:
            track.changed(path)
    return pruned, {path: masks[path] for path in paths.flatten(variables) if path in masks}


def _one(pattern: Pattern, block_size: int, damping: float | None, matrix: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    weight, hessian, rows = matrix
    taken = jnp.maximum(0.01, oracle_damping(hessian, rows)) if damping is None else damping
    return sparsegpt(weight, hessian, pattern, block_size=block_size, damping=taken)


def _add(totals: tuple[Array, Array], rows: Array, _: Array | None) -> tuple[Array, Array]:
    hessian, count = totals
    product = jnp.matmul(jnp.swapaxes(rows, -1, -2), rows, precision=jax.lax.Precision.HIGHEST)
    return hessian + product, count + rows.shape[-2]


@partial(jax.jit, static_argnums=(4, 5, 6))
def _solve(weight: Array, hessian: Array, keeps: Array, damping: Array, size: int, n: int, m: int) -> tuple[Array, Array]:
    """Prune with given numbers of weights kept in each block of `size` inputs, or n of m where n > 0."""
    rows, columns = weight.shape
    blocks = keeps.shape[0]
    dtype = jnp.promote_types(weight.dtype, jnp.float32)
    found = inverse_cholesky(hessian.astype(dtype), damping)
    pad = blocks * size - rows
    factor = jnp.pad(found.factor, ((0, pad), (0, pad))) + jnp.diag((jnp.arange(rows + pad) >= rows).astype(dtype))
    # A weight whose input is always zero is worth nothing, and none needs to take over from it.
    held = jnp.where(found.dead[:, None], 0, weight.astype(dtype))
    held = jnp.pad(held, ((0, pad), (0, 0)))
    diagonal = jnp.diagonal(factor)[:, None]
    real = (jnp.arange(rows + pad) < rows)[:, None]

    def block(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        held, masks = state
        start = number * size
        part = jax.lax.dynamic_slice(held, (start, 0), (size, columns))
        lines = jax.lax.dynamic_slice(factor, (start, 0), (size, rows + pad))
        inner = jax.lax.dynamic_slice(lines, (0, start), (size, size))
        scale = jax.lax.dynamic_slice(diagonal, (start, 0), (size, 1))
        there = jax.lax.dynamic_slice(real, (start, 0), (size, 1))
        scores = jnp.where(there, (part / scale) ** 2, -1.0)
        mask = top_of_all([scores], keeps[number])[0] if n == 0 else jnp.zeros(part.shape, bool)

        def row(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            part, mask, errors = state
            if n:
                mask = jax.lax.cond(i % m == 0, lambda: _n_of_m(part, scale, mask, i, n, m), lambda: mask)
            new = jnp.where(mask[i], part[i], 0)
            error = (part[i] - new) / scale[i]
            part = (part - inner[i][:, None] * error[None]).at[i].set(new)
            return part, mask, errors.at[i].set(error)

        part, mask, errors = jax.lax.fori_loop(0, size, row, (part, mask, jnp.zeros_like(part)))
        after = jnp.where(jnp.arange(rows + pad)[None] >= start + size, lines, 0)
        held = jax.lax.dynamic_update_slice(held, part, (start, 0))
        held = held - jnp.matmul(after.T, errors, precision=jax.lax.Precision.HIGHEST)
        return held, jax.lax.dynamic_update_slice(masks, mask, (start, 0))

    held, masks = jax.lax.fori_loop(0, blocks, block, (held, jnp.zeros(held.shape, bool)))
    masks = masks[:rows]
    return jnp.where(masks, held[:rows], 0).astype(weight.dtype), masks


def _n_of_m(part: Array, scale: Array, mask: Array, start: Array, n: int, m: int) -> Array:
    """Set the mask of the m inputs from `start` on: the n of highest cost in every output; ties go to the first."""
    weights = jax.lax.dynamic_slice(part, (start, 0), (m, part.shape[1]))
    costs = (weights / jax.lax.dynamic_slice(scale, (start, 0), (m, 1))) ** 2
    down = jnp.argsort(jnp.argsort(-costs, axis=0, stable=True), axis=0)
    return jax.lax.dynamic_update_slice(mask, down < n, (start, 0))


def _checked(weight: Array, hessian: Array, pattern: Pattern, block_size: int) -> tuple[int, int]:
    if weight.ndim != 2 or hessian.shape != (weight.shape[0],) * 2:
        raise ValueError(
            f"sparsegpt: the weight must be (inputs, outputs) and the Hessian (inputs, inputs); got {weight.shape} and "
            f"{hessian.shape}."
        )
    check_whole("sparsegpt: block_size", block_size, 1)
    problem = _misfit(pattern, weight.shape[0], block_size)
    if problem:
        raise ValueError(f"sparsegpt: {problem}.")
    return weight.shape[0], weight.shape[1]


def _misfit(pattern: Pattern, rows: int, block_size: int) -> str:
    """Say what is wrong with a pattern for a layer; nothing if it fits."""
    if not isinstance(pattern, tuple):
        check_fraction("sparsity", pattern)
        return ""
    n, m = pattern
    if not 0 < n <= m:
        return f"n of m must be 0 < n <= m; got n={n}, m={m}"
    size = min(block_size, rows)
    return f"m={m} must divide the {rows} inputs and the blocks of {size}" if rows % m or size % m else ""


def _patterns(pattern: Any, layouts: Mapping[Path, Layout], block_size: int) -> dict[Path, Pattern]:
    by_path = pattern if isinstance(pattern, Mapping) else dict.fromkeys(layouts, pattern)
    with collect("sparsegpt_prune: the pattern must fit every selected leaf") as problems:
        for path, layout in layouts.items():
            if path not in by_path:
                problems.append(f"{path}: has no pattern; there are some for {', '.join(by_path)}")
            elif found := _misfit(by_path[path], layout.inputs, block_size):
                problems.append(f"{path}: {found}")
    return {path: by_path[path] for path in layouts}
