"""GPTQ: round the inputs of a layer one after the other, and let those that follow make up for the error."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.formats import Format
from lepton_jax.formats.ranges import Calibration
from lepton_jax.graph.moments import inverse_cholesky, oracle_damping
from lepton_jax.leaves.qarray import QArray
from lepton_jax.quantization.post_training.grid import Grid, search_grid, snap
from lepton_jax.quantization.post_training.inputs import one_layer
from lepton_jax.quantization.post_training.layers import Matrix
from lepton_jax.quantization.weights import packed_levels

_LEAST = 0.01


@checked
def gptq(
    w: Array,
    hessian_inputs: Array,
    fmt: Format,
    *,
    calibration: Calibration | None = None,
    factors: Sequence[float] | None = (),
    activation_order: bool = False,
    damping: float | None = None,
    block_size: int = 128,
) -> QArray:
    """Quantize one layer ``y = x w`` so that its outputs, rather than its weights, stay near.

    With ``H = X' X`` and U the upper triangle of ``inverse(H + damping * mean(diag H)) = U' U``, inputs are gone through in
    order: ``q_i = nearest(w_i)``, and those after i become ``w_j -= U_ij (w_i - q_i) / U_ii``. Scales are found beforehand
    from the given weights (static groups), so that any format and grouping works in any order. Weights of inputs that are
    always zero are rounded to nearest and touch no others; if all are, so are all.

    Args:
      w: (inputs, outputs); floating.
      hessian_inputs: what the layer is fed, (..., inputs): calibration inputs, not their Hessian.
      fmt: the number format.
      calibration: finds the range; None: the format's own.
      factors: multiples of that range to try; None: as `quantize_layers` does by default; see `search_grid`.
      activation_order: inputs with the largest ``H_ii`` first, while there are others left to make up.
      damping: see `inverse_cholesky`; raised tenfold as often as needed. None: what the number of rows asks for
        (`oracle_damping`), at least 0.01. With 0.01 and few more rows than inputs, or fewer, outputs on other rows are often
        further off than by rounding to nearest.
      block_size: inputs whose effect on those after the block is summed before it is applied.

    Returns:
      packed leaf of the weight's shape and dtype; `dequantize` gives the array.

    Raises:
      ValueError: for shapes that do not fit, or if a weight or input is not finite.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> w, x = jnp.array([[0.5], [0.4], [1.5]]), jnp.array([[1.0, 1.0, 0.0], [1.0, 1.1, 0.0], [0.0, 0.0, 1.0]])
      >>> gptq(w, x, Uniform(bits=2), damping=1e-4).qvalue.tolist()  # to nearest: 0, 0, 1
      [[0], [1], [1]]

    Source: Frantar, Ashkboos, Hoefler, Alistarh 2023, "GPTQ: Accurate post-training quantization for generative pre-trained
    transformers", algorithm 1. Deviations: groups have the scales of the original weights; the damping by the number of rows.
    """
    layout, rows, hessian = one_layer("gptq", w, hessian_inputs)
    grid = search_grid(w, hessian, layout, fmt, calibration, factors)
    matrix = Matrix(w.astype(jnp.float32), hessian, grid.matrix(fmt, layout), jnp.int32(rows.shape[0]))
    solve = Gptq(activation_order=activation_order, damping=damping, block_size=block_size)
    levels, _ = solve(matrix, fmt)
    if not bool(jnp.isfinite(levels).all() & jnp.isfinite(rows).all() & jnp.isfinite(w).all()):
        raise ValueError("gptq: weights and inputs must be finite.")
    return packed_levels(levels, *grid, fmt, w.dtype)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq:
    """GPTQ, for `quantize_layers`.

    Args:
      activation_order: see `gptq`.
      damping: see `gptq`.
      block_size: see `gptq`.

    Raises:
      ValueError: for a negative damping, or blocks of less than one input.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> weight, hessian = jnp.array([[0.4], [0.4]]), jnp.array([[1.0, 0.99], [0.99, 1.0]])
      >>> Gptq()(Matrix(weight, hessian, Grid(jnp.ones((2, 1)), jnp.zeros((2, 1)))), Uniform(bits=2))[0].tolist()
      [[0.0], [1.0]]
    """

    activation_order: bool = False
    damping: float | None = None
    block_size: int = 128

    def __post_init__(self) -> None:
        check_whole("Gptq: block_size", self.block_size, 1)
        if self.damping is not None and not self.damping >= 0:
            raise ValueError(f"Gptq: damping must be 0 or more, times the mean of the Hessian's diagonal; got {self.damping}.")

    def __call__(self, matrix: Matrix, fmt: Format) -> tuple[Array, Array]:
        size = min(self.block_size, max(matrix.weight.shape[0], 1))
        damping = jnp.float32(_LEAST if self.damping is None else self.damping)
        if self.damping is None and matrix.rows is not None:
            damping = jnp.maximum(damping, oracle_damping(matrix.hessian, matrix.rows))
        return _solve(matrix, damping, fmt, size, self.activation_order)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _solve(matrix: Matrix, damping: Array, fmt: Format, size: int, activation_order: bool) -> tuple[Array, Array]:
    rows, columns = matrix.weight.shape
    grid = Grid(*(jnp.broadcast_to(part, matrix.weight.shape) for part in matrix.grid))
    order = jnp.arange(rows)
    if activation_order:
        order = jnp.argsort(-jnp.diagonal(matrix.hessian), stable=True)
    found = inverse_cholesky(matrix.hessian[order][:, order], damping)
    blocks = -(-rows // size)
    pad = blocks * size - rows
    factor = jnp.pad(found.factor, ((0, pad), (0, pad))) + jnp.diag((jnp.arange(rows + pad) >= rows).astype(jnp.float32))
    diagonal = jnp.diagonal(factor)[:, None]
    held, scale, zero_point = (jnp.pad(part[order], ((0, pad), (0, 0))) for part in (matrix.weight, *grid))
    scale = jnp.where((jnp.arange(rows + pad) < rows)[:, None], scale, 1)

    def block(number: Array, held: Array) -> Array:
        start = number * size
        part, scales, zeros = (jax.lax.dynamic_slice(x, (start, 0), (size, columns)) for x in (held, scale, zero_point))
        lines = jax.lax.dynamic_slice(factor, (start, 0), (size, rows + pad))
        inner = jax.lax.dynamic_slice(lines, (0, start), (size, size))
        ends = jax.lax.dynamic_slice(diagonal, (start, 0), (size, 1))

        def row(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            part, errors = state
            level = snap(part[i], Grid(scales[i], zeros[i]), fmt)
            error = (part[i] - level) / ends[i]
            part = (part - inner[i][:, None] * error[None]).at[i].set(level)
            return part, errors.at[i].set(error)

        part, errors = jax.lax.fori_loop(0, size, row, (part, jnp.zeros_like(part)))
        after = jnp.where(jnp.arange(rows + pad)[None] >= start + size, lines, 0)
        held = jax.lax.dynamic_update_slice(held, part, (start, 0))
        return held - jnp.matmul(after.T, errors, precision=jax.lax.Precision.HIGHEST)

    held = jax.lax.fori_loop(0, blocks, block, held)
    levels = jnp.zeros_like(held[:rows]).at[order].set(held[:rows])
    # Where no damping helped, the factor is NaN; levels would hide it, since NaN rounds to the zero point.
    return jnp.where(jnp.isfinite(found.factor).all(), levels, jnp.nan), found.damping
