"""Second moments of what a layer is fed: the Hessian of its reconstruction error, for one-shot pruning and quantization.

For a layer ``y = x W``, the squared error of the output for changed weights is ``tr(dW' H dW)`` with ``H = X' X``.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.layers import layers
from lepton_jax.graph.layout import Layout, Use, input_rows
from lepton_jax.graph.trace import Apply, Equation, Traced, trace
from lepton_jax.graph.weights import weight_uses


class Moments(NamedTuple):
    """Second moments of a layer's inputs.

    Attributes:
      second: ``X' X``, (inputs, inputs), summed over all rows, float32 (float64 under x64); or its diagonal, (inputs,). Of a
        leaf that stacks matrices (the layers of a scan, the groups of a convolution, experts): one for each, with the leading
        axes `layout.stacked`; `rows` too.
      rows: int32, how many rows (examples, positions, patches) they were.
      layout: the leaf as a matrix (inputs, outputs).
    """

    second: Array
    rows: Array
    layout: Layout


class InverseCholesky(NamedTuple):
    """A factor of an inverse Hessian.

    Attributes:
      factor: U, upper triangular, ``inverse(H + damping * mean(diag H) * I) = U' U``.
      damping: what it took; more than was asked for if the matrix was not positive definite in floating point.
      dead: (inputs,), True where the input was always zero.
    """

    factor: Array
    damping: Array
    dead: Array


def second_moments(
    apply: Apply,
    variables: PyTree,
    batches: Iterable[Any],
    select: Select | None = None,
    *,
    diagonal: bool = False,
    memory: float = 2**30,
) -> Iterator[tuple[Path, Moments]]:
    """Collect ``X' X`` of the inputs of every selected layer, over calibration batches.

    Leaves of any rank that reach a dot (through reshapes, transposes, casts) or a convolution (as a dot with patches, position
    by position, the channels of each together; each group by itself); used several times, their inputs are all counted.
    Batches stream through one compiled function. Products and sums are float32, with the full precision of the device.

    Args:
      apply: ``apply(variables, *inputs)``, in evaluation mode.
      variables: arrays.
      batches: each one array, or a tuple of the inputs. Gone through several times if the matrices don't fit `memory` together,
        so give a list rather than a generator.
      select: which leaves; None: all weights of the function's dots and convolutions, see `lepton_jax.graph.layers`.
      diagonal: only the diagonals, (inputs,), at much less cost.
      memory: bytes of matrices in one pass; at least one layer is collected at a time.

    Yields:
      ``(path, moments)``, in the order in which the layers run.

    Raises:
      ValueError: for no batch, a generator that would be needed twice, or selected leaves that are no layer's weights.

    Example:
      >>> [(path, found)] = second_moments(lambda v, x: x @ v["w"], {"w": jnp.ones((2, 3))}, [jnp.array([[1.0, 2.0]])])
      >>> path, found.second.tolist(), int(found.rows)
      ('w', [[1.0, 2.0], [2.0, 4.0]], 1)

    Source: Hassibi, Stork 1993, "Second order derivatives for network pruning"; Frantar, Alistarh 2022, "Optimal brain
    compression", section 3.
    """
    again = list(batches) if iter(batches) is batches else batches
    first = next(iter(again), None)
    if first is None:
        raise ValueError("second_moments needs at least one calibration batch; got none.")
    layouts = layers(apply, variables, *as_inputs(first), select=select).layouts
    itemsize = jnp.zeros((), _accumulator()).itemsize
    shapes = {p: (*layout.stacked, *(layout.inputs,) * (1 if diagonal else 2)) for p, layout in layouts.items()}
    for group in _groups({path: itemsize * math.prod(shape) for path, shape in shapes.items()}, memory):
        step = jax.jit(partial(_step, apply, group, diagonal), donate_argnums=0)
        totals = {path: jnp.zeros(shapes[path], _accumulator()) for path in group}
        counts = {path: jnp.zeros(layouts[path].stacked, jnp.int32) for path in group}
        for batch in again:
            totals, rows = step(totals, variables, *as_inputs(batch))
            counts = {path: count + rows[path] for path, count in counts.items()}
        for path in group:
            yield path, Moments(totals.pop(path), counts[path], layouts[path])


def input_statistics(
    apply: Apply, selected: Collection[Path], statistic: Callable[[Array], PyTree], variables: PyTree, *inputs: Any
) -> dict[Path, list[tuple[Use, PyTree]]]:
    """Return a statistic of what selected layers are fed, for one batch; to be called under jit.

    Args:
      apply: ``apply(variables, *inputs)``.
      selected: paths of the layers' weights.
      statistic: of the rows (*groups, rows, inputs) that the weight as a matrix is multiplied by, see `input_rows`; float32
        (float64 under x64).
      variables: arrays.
      *inputs: one batch.

    Returns:
      ``{path: [(use, statistic), ...]}``, one for each use of the leaf. From inside scans, every array of the statistic has
      a leading axis for each scan around the operation.

    Raises:
      ValueError: as `weight_uses`.

    Example:
      >>> found = input_statistics(lambda v, x: x @ v["w"], ["w"], lambda rows: rows.max(0), {"w": jnp.eye(2)}, jnp.eye(2))
      >>> [(use, largest)] = found["w"]
      >>> use.name, largest.tolist()
      ('dot_general', [1.0, 1.0])
    """
    traced = trace(apply, variables, *inputs)
    uses = weight_uses(traced, selected)
    interpreter = _Statistics(traced, uses, statistic)
    interpreter(variables, *inputs)
    return {path: [(use, interpreter.emitted[use.name]) for use in several] for path, several in uses.items()}


def as_inputs(batch: Any) -> tuple[Any, ...]:
    """Return a batch as the tuple of a model's inputs: a tuple as it is, anything else as the only one.

    Example:
      >>> as_inputs(1), as_inputs((1, 2))
      ((1,), (1, 2))
    """
    return batch if isinstance(batch, tuple) else (batch,)


@partial(jax.jit, static_argnames="attempts")
def inverse_cholesky(hessian: Array, damping: float | Array = 0.01, *, attempts: int = 6) -> InverseCholesky:
    """Return the upper triangular `U` with ``U' U = inverse(H + damping * mean(diag H) * I)``.

    Row i of `U`, divided by its first entry, says how the inputs after i take over from input i when those before it are fixed.
    It is the inverse of the triangle R of ``H = R R'``, so no inverse of H is ever formed. Inputs that were always zero
    (``H_ii = 0``) get the mean of the others on the diagonal. When the factorisation fails, the damping is raised tenfold.

    Args:
      hessian: (n, n), symmetric, positive semidefinite, finite.
      damping: times the mean of the diagonal that is not zero.
      attempts: how often it is tried. If the last fails, the factor is NaN.

    Example:
      >>> found = inverse_cholesky(jnp.array([[4.0, 0.0], [0.0, 0.0]]), 0.0)
      >>> found.factor.tolist(), found.dead.tolist(), float(found.damping)
      ([[0.5, 0.0], [0.0, 0.5]], [False, True], 0.0)

    Source: Frantar, Ashkboos, Hoefler, Alistarh 2023, "GPTQ", section 3.3, step 3; the retries are ours.
    """
    diagonal = jnp.diagonal(hessian)
    dead = diagonal == 0
    mean = jnp.sum(diagonal) / jnp.maximum(jnp.sum(~dead), 1)
    mean = jnp.where(mean > 0, mean, 1.0)
    filled = hessian + jnp.diag(jnp.where(dead, mean, 0.0))
    identity = jnp.eye(hessian.shape[0], dtype=hessian.dtype)

    def factor(damp: Array) -> Array:
        # A Cholesky factor of the matrix turned round, turned back, is upper triangular.
        turned = jnp.linalg.cholesky((filled + damp * mean * identity)[::-1, ::-1])
        return jax.scipy.linalg.solve_triangular(turned[::-1, ::-1], identity, lower=False)

    def going(state: tuple[Array, Array, Array]) -> Array:
        attempt, _, found = state
        return (attempt < attempts) & ~jnp.all(jnp.isfinite(found))

    def retry(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        attempt, damp, _ = state
        damp = jnp.where(damp > 0, 10 * damp, 1e-6)
        return attempt + 1, damp, factor(damp)

    start = jnp.asarray(damping, hessian.dtype)
    _, used, found = jax.lax.while_loop(going, retry, (jnp.int32(1), start, factor(start)))
    return InverseCholesky(found, used, dead)


def oracle_damping(second: Array, rows: Array | int) -> Array:
    """Return how much of its mean diagonal a second moment of few rows wants added, to be near that of all inputs there are.

    Of p inputs that are not always zero and n rows, with ``S = X' X / n``, the shrunk moment ``(1 - r) S + r tr(S) / p I`` has

        r = min(1, ((1 - 2/p) tr(S S) + tr(S)^2) / ((n + 1 - 2/p) (tr(S S) - tr(S)^2 / p))),

    and is proportional to ``S + r / (1 - r) tr(S) / p I``. It falls as 1 / n: with fewer rows than inputs it is of the order of
    0.1 to 10, and what is solved with less of it follows the rows at hand and is worse on others; see `inverse_cholesky`.

    Args:
      second: (n, n), ``X' X`` of any positive scale.
      rows: how many rows X had.

    Returns:
      ``r / (1 - r)``, float32, at most 1000: where the inputs are alike and uncorrelated, as they may be with one row.

    Example:
      >>> x = jnp.tile(jnp.array([[1.0, 2.0, 3.0, 4.0]]), (5, 1))
      >>> [round(float(oracle_damping(x.T @ x, rows)), 3) for rows in (5, 50, 5000)]
      [0.571, 0.041, 0.0]

    Source: Chen, Wiesel, Eldar, Hero 2010, "Shrinkage algorithms for MMSE covariance estimation", equation 23, for
    moments about zero.
    """
    diagonal = jnp.diagonal(second)
    live = jnp.maximum(jnp.sum(diagonal > 0), 1).astype(jnp.float32)
    unit = second / jnp.maximum(jnp.sum(diagonal) / live, jnp.finfo(second.dtype).tiny)
    square, trace = jnp.sum(unit * unit), live**2
    above = (1 - 2 / live) * square + trace
    below = (jnp.asarray(rows, jnp.float32) + 1 - 2 / live) * (square - trace / live)
    # r / (1 - r) is above / (below - above).
    most = jnp.float32(1000.0)
    return jnp.where(below * most > above * (1 + most), above / jnp.maximum(below - above, above / most), most).astype(
        jnp.float32
    )


def damped(second: Array, damping: float | Array) -> Array:
    """Return ``S + damping * mean(diag S) * I``, the mean over what is not zero; with nothing but zeros, damping times I.

    Args:
      second: (..., n, n).
      damping: a scalar, or one for each matrix.

    Example:
      >>> damped(jnp.array([[4.0, 0.0], [0.0, 0.0]]), 0.5).tolist()
      [[6.0, 0.0], [0.0, 2.0]]
    """
    diagonal = jnp.diagonal(second, axis1=-2, axis2=-1)
    mean = jnp.sum(diagonal, axis=-1) / jnp.maximum(jnp.sum(diagonal != 0, axis=-1), 1)
    added = damping * jnp.where(mean > 0, mean, 1.0)
    return second + added[..., None, None] * jnp.eye(second.shape[-1], dtype=second.dtype)


class _Statistics(Interpreter):
    """Hands out a statistic of the rows that the given operations are fed."""

    def __init__(self, traced: Traced, uses: Mapping[Path, Sequence[Use]], statistic: Callable[[Array], PyTree]):
        super().__init__(traced)
        self.uses = {use.operation: use for several in uses.values() for use in several}
        self.statistic = statistic

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        use = self.uses.get(eqn.path)
        if use is None:
            return None
        self.emit(use.name, self.statistic(input_rows(use, eqn, values).astype(_accumulator())))
        return self.default(eqn, values)


def _second(diagonal: bool, rows: Array) -> tuple[Array, Array]:
    """Second moments, or their diagonal, and how many rows there are, of each group."""
    count = jnp.full(rows.shape[:-2], rows.shape[-2], jnp.int32)
    if diagonal:
        return jnp.sum(rows**2, axis=-2), count
    return jnp.matmul(jnp.swapaxes(rows, -1, -2), rows, precision=jax.lax.Precision.HIGHEST), count


def _step(
    apply: Apply, selected: Collection[Path], diagonal: bool, totals: dict[Path, Array], variables: PyTree, *inputs: Any
) -> tuple[dict[Path, Array], dict[Path, Array]]:
    """Add a batch's moments to the totals; return them and how many rows there were."""
    totals = dict(totals)
    counts: dict[Path, Array] = {}
    for path, several in input_statistics(apply, selected, partial(_second, diagonal), variables, *inputs).items():
        for use, (second, rows) in several:
            scans = rows.ndim - (len(use.layout.stacked) - len(use.levels))
            steps = tuple(axis for axis in range(scans) if axis not in use.levels)
            totals[path] += jnp.sum(second, axis=steps)
            counts[path] = counts.get(path, jnp.int32(0)) + jnp.sum(rows, axis=steps)
    return totals, counts


def _groups(sizes: Mapping[Path, float], memory: float) -> Iterator[list[Path]]:
    """Split the layers, in order, into groups of no more than `memory` bytes, of one layer at least."""
    group: list[Path] = []
    for path, size in sizes.items():
        if group and sum(sizes[p] for p in group) + size > memory:
            yield group
            group = []
        group.append(path)
    if group:
        yield group


def _accumulator() -> Any:
    return jax.dtypes.canonicalize_dtype(np.float64)
