"""Sensitivity: how much the loss suffers from pruning each leaf alone, and sparsities by it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.pruning.allocation import Shapes
from lepton_jax.pruning.criteria.base import Criterion
from lepton_jax.pruning.criteria.magnitude import Magnitude
from lepton_jax.pruning.masks import top


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """Losses by leaf and sparsity, from `sensitivity`.

    Args:
      sparsities: measured, ascending.
      curves: by path, the loss at each of them, with this leaf alone pruned.
      loss: of the dense parameters.
      shapes: of the leaves.

    Example:
      >>> found = Sensitivity(
      ...     sparsities=(0.5, 0.9),
      ...     curves={"a": np.array([1.0, 2.0]), "b": np.array([1.5, 4.0])},
      ...     loss=1.0,
      ...     shapes={"a": (10,), "b": (10,)},
      ... )
      >>> print(found)
      loss with one leaf pruned (dense: 1)
      leaf  weights     50 %     90 %
      a          10        1        2
      b          10      1.5        4
      >>> found.sparsities_for(0.6)
      {'a': 0.7, 'b': 0.5}
    """

    sparsities: tuple[float, ...]
    curves: Mapping[Path, np.ndarray]
    loss: float
    shapes: Shapes

    def __str__(self) -> str:
        width = max(len("leaf"), *map(len, self.curves))
        percent = [f"{100 * sparsity:g} %" for sparsity in self.sparsities]
        lines = [
            f"loss with one leaf pruned (dense: {self.loss:.4g})",
            f"{'leaf':<{width}}  {'weights':>7}" + "".join(f"{p:>9}" for p in percent),
        ]
        for path, curve in self.curves.items():
            size = int(np.prod(self.shapes[path]))
            lines.append(f"{path:<{width}}  {size:>7}" + "".join(f"{value:>9.4g}" for value in curve))
        return "\n".join(lines)

    def allocation(self, shapes: Shapes, sparsity: float) -> dict[Path, float]:
        """Return sparsities by path that remove `sparsity` of all weights at equal increases of the loss.

        Give it to ``prune(..., allocation=found.allocation)``. Each leaf is pruned as far as its own increase, on a curve made
        ascending and joined by straight lines, stays below a bound; the bound is found by bisection. No leaf goes beyond what
        was measured. The total removed is exact: ``round(sparsity * n)`` of n weights.

        Args:
          shapes: by path, of leaves that were measured.
          sparsity: fraction of them all removed, [0, 1).

        Raises:
          ValueError: for leaves that were not measured or had another shape, or more than the highest sparsity measured.
        """
        check_fraction("sparsity", sparsity)
        with collect("Sensitivity: leaves must be those that were measured") as problems:
            for path, shape in shapes.items():
                if path not in self.curves:
                    problems.append(f"{path}: was not measured; those measured are {', '.join(self.curves)}")
                elif tuple(shape) != tuple(self.shapes[path]):
                    problems.append(f"{path}: has shape {tuple(shape)}; was measured with {tuple(self.shapes[path])}")
        sizes = np.array([int(np.prod(shape)) for shape in shapes.values()])
        removed = round(sparsity * int(sizes.sum()))
        most = np.floor(self.sparsities[-1] * sizes).astype(int)
        if removed > most.sum():
            raise ValueError(
                f"Sensitivity: sparsity {sparsity} needs leaves sparser than {self.sparsities[-1]}, the highest measured. "
                "Measure higher ones too."
            )
        counts = _whole(self._counts(list(shapes), sizes, removed), removed, most)
        return {path: int(count) / int(size) if size else 0.0 for path, count, size in zip(shapes, counts, sizes)}

    def sparsities_for(self, sparsity: float) -> dict[Path, float]:
        """Return `allocation` over all leaves measured."""
        return self.allocation(self.shapes, sparsity)

    def _counts(self, leaves: Sequence[Path], sizes: np.ndarray, removed: int) -> np.ndarray:
        """How many weights of each leaf go, not yet whole, that together `removed` do."""
        grid = np.array([0.0, *self.sparsities])
        rises = [np.maximum.accumulate([0.0, *(self.curves[path] - self.loss)]) for path in leaves]

        def at(bound: float) -> np.ndarray:
            return sizes * np.array([_furthest(grid, rise, bound) for rise in rises])

        low, high = -1.0, max(rise[-1] for rise in rises)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle).sum() < removed else (low, middle)
        # Where a curve is level, its leaf jumps from one bound to the next: take a part of the way.
        below, above = at(low), at(high)
        gap = above.sum() - below.sum()
        return below + (above - below) * ((removed - below.sum()) / gap if gap > 0 else 0.0)


@checked
def sensitivity(
    loss: Callable[[PyTree], Array],
    params: PyTree,
    *,
    sparsities: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    criterion: Criterion = Magnitude(),
    select: Select = paths.matrices,
    progress: bool = True,
) -> Sensitivity:
    """Measure the loss with each leaf pruned alone, at several sparsities.

    Args:
      loss: ``loss(params) -> scalar``; compiled once, and called once for each leaf and sparsity. A loss over many
        batches is best a mean inside.
      params: the trained parameters.
      sparsities: fractions removed, ascending, in (0, 1).
      criterion: which weights go first; its state is that of a fresh start.
      select: which leaves.
      progress: show a bar.

    Returns:
      the curves; print them, or allocate by them.

    Raises:
      ValueError: for sparsities out of range or order, or a loss that is not finite, with leaf and sparsity.

    Example:
      >>> params = {"w": jnp.array([[1.0, 4.0], [3.0, 2.0]])}
      >>> found = sensitivity(lambda p: (p["w"].sum() - 10) ** 2, params, sparsities=(0.25, 0.5), progress=False)
      >>> found.loss, found.curves["w"].tolist()
      (0.0, [1.0, 9.0])

    Source: Han, Pool, Tran, Dally 2015, "Learning both weights and connections for efficient neural networks", section 5 and
    figure 6. Deviation: the paper chooses thresholds by hand from the curves; here the increase of the loss is made equal.
    """
    levels = tuple(float(sparsity) for sparsity in sparsities)
    if not levels or any(not 0 < level < 1 for level in levels) or any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(f"sensitivity: sparsities must ascend within (0, 1); got {levels}.")
    leaves = paths.select(params, select)
    scores = criterion.score_all(leaves, criterion.init_all(leaves, params), params)
    measure = jax.jit(loss)
    prune = jax.jit(lambda leaf, score, level: jnp.where(top(score, level), leaf, jnp.zeros((), leaf.dtype)))
    dense = float(measure(params))
    curves = {path: np.zeros(len(levels)) for path in leaves}
    with tqdm(total=len(leaves) * len(levels), desc="sensitivity", disable=not progress) as bar:
        for path, leaf in leaves.items():
            for number, level in enumerate(levels):
                curves[path][number] = float(measure(paths.replace(params, {path: prune(leaf, scores[path], level)})))
                bar.update()
    with collect("sensitivity: the loss must be finite") as problems:
        problems.extend([f"dense: got {dense}"] if not np.isfinite(dense) else [])
        for path, curve in curves.items():
            problems.extend(f"{path}: got {v} at sparsity {s}" for s, v in zip(levels, curve) if not np.isfinite(v))
    return Sensitivity(
        sparsities=levels, curves=curves, loss=dense, shapes={path: tuple(leaf.shape) for path, leaf in leaves.items()}
    )


def _furthest(grid: np.ndarray, rise: np.ndarray, bound: float) -> float:
    """The largest sparsity at which an ascending curve through the grid is not above the bound."""
    if bound < 0:
        return 0.0
    last = int(np.searchsorted(rise, bound, side="right")) - 1
    if last + 1 == len(grid):
        return float(grid[-1])
    part = (bound - rise[last]) / (rise[last + 1] - rise[last])
    return float(grid[last] + part * (grid[last + 1] - grid[last]))


def _whole(counts: np.ndarray, total: int, most: np.ndarray) -> np.ndarray:
    """Round counts to whole numbers that sum to `total` and stay within `most`; the largest remainders go up."""
    floors = np.minimum(np.floor(counts + 1e-9).astype(int), most)
    order = np.argsort(-(counts - floors), kind="stable")
    while floors.sum() < total:
        for place in order:
            if floors.sum() < total and floors[place] < most[place]:
                floors[place] += 1
    return floors
