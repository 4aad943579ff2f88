"""One budget for all layers: where a parameter more saves the most error."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.packed import unpack
from lepton_jax.core.typing import Array, Path
from lepton_jax.lowrank.method import Method, as_tuple
from lepton_jax.lowrank.ranks.knapsack import Option, Options, solve
from lepton_jax.lowrank.ranks.rule import (
    Ranks,
    Spectrum,
    Weights,
    check_concrete,
    check_multiple,
    has_spectra,
    like,
    to_multiple,
)

_MEASURED = 12
"""Ranks that are tried where no singular values tell the error."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Choose all ranks so that the total error is least and the total cost within a budget.

    ``min sum_l e_l(r_l)`` subject to ``sum_l c_l(r_l) <= budget``. The error of a rank is the sum of squared singular values
    left out (of a method without them, that of the factors made); as a share of the layer's own, unless `relative` is False.
    Ranks grow where the fall of the error for a cost of one is steepest, over the convex hull of each layer's ranks; staying
    dense is one more choice, of error 0, and the only one that costs as much. Where layers are few and their steps coarse, a
    knapsack solved in 2,000 parts of the budget does better; the better one is taken. The result is never of more error than
    the best uniform fraction within the budget.

    Args:
      fraction: the budget as a share, in (0, 1], of what the dense weights cost.
      total: the budget itself. Give one of the two.
      of: what is counted: numbers stored, multiply-accumulates of one call, or bytes (in each weight's dtype).
      macs: for ``of="macs"``: multiply-accumulates of each dense weight in one call, by path, from `dense_macs`; those of
        factors are in proportion to their size, as they are where all factors work at the same positions.
      relative: whether a layer's error counts as a share of its own energy.
      multiple: of what ranks shall be multiples, where one fits.

    Raises:
      ValueError: for settings out of range, or of `ranks` for a budget below the least there is, and leaves without `macs`.
      TypeError: of `ranks`, inside jit.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.svd import Svd
      >>> steep, flat = jnp.diag(jnp.array([9.0, 1.0, 1.0, 1.0])), jnp.eye(4) * 3
      >>> Budget(total=24, relative=False).ranks({"steep": steep, "flat": flat}, Svd())  # a rank costs 8, dense 16
      {'steep': 1}
      >>> Budget(total=16, relative=False).ranks({"steep": steep, "flat": flat}, Svd())
      {'steep': 1, 'flat': 1}
    """

    fraction: float | None = None
    total: float | None = None
    of: Literal["parameters", "macs", "bytes"] = "parameters"
    macs: Mapping[Path, float] = dataclasses.field(default_factory=dict)
    relative: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        with collect("Budget") as problems:
            if (self.fraction is None) == (self.total is None):
                problems.append(f"give either fraction or total; got fraction={self.fraction}, total={self.total}")
            if self.fraction is not None and not 0 < self.fraction <= 1:
                problems.append(f"fraction: must be in (0, 1], of the cost of the dense weights; got {self.fraction}")
            if self.total is not None and not self.total > 0:
                problems.append(f"total: must be above 0; got {self.total}")
            if self.of not in ("parameters", "macs", "bytes"):
                problems.append(f"of: must be 'parameters', 'macs' or 'bytes'; got {self.of!r}")
            if (self.of == "macs") != bool(self.macs):
                problems.append("macs: needed for of='macs', from dense_macs(apply, variables, *inputs), and for nothing else")
        check_multiple("Budget", self.multiple)

    def ranks(self, weights: Weights, method: Method) -> Ranks:
        """Return ``{path: rank}``; a weight that is missing stays dense."""
        chosen = self.choose(weights, method)
        return {path: option.rank for path, option in chosen.items() if option.rank is not None}

    def choose(self, weights: Weights, method: Method) -> dict[Path, Option]:
        """Return each weight's choice, with its cost and error."""
        check_concrete("Budget", weights)
        with collect("Budget: macs has no entry for these; take them from dense_macs, or deselect them") as problems:
            problems.extend(path for path in weights if self.of == "macs" and path not in self.macs)
        options = {path: self._options(weight, method.at(path), self._unit(path, weight)) for path, weight in weights.items()}
        dense = sum(self._unit(path, weight) * math.prod(weight.shape) for path, weight in weights.items())
        limit = self.total if self.fraction is None else self.fraction * dense
        assert limit is not None
        least = sum(min(option.cost for option in layer) for layer in options.values())
        if least > limit:
            raise ValueError(
                f"Budget: {limit:,.0f} {self.of} are less than the least, {least:,.0f}, of rank {self.multiple} everywhere "
                f"(dense {dense:,.0f}). Raise the budget, or deselect leaves."
            )
        return solve(options, limit)

    def _unit(self, path: Path, weight: Array) -> float:
        """What one number of a weight costs."""
        if self.of == "macs":
            return self.macs[path] / max(math.prod(weight.shape), 1)
        return float(weight.dtype.itemsize) if self.of == "bytes" else 1.0

    def _options(self, weight: Array, method: Method, unit: float) -> Options:
        """All ranks worth a look, the least first, and dense."""
        shape = tuple(weight.shape)
        largest = method.max_rank(shape)
        most = max(as_tuple(largest))
        steps = sorted({to_multiple(rank, self.multiple, most, up=False) for rank in range(1, most + 1)})
        if not has_spectra(method):
            steps = sorted({steps[int(place)] for place in np.linspace(0, len(steps) - 1, _MEASURED)})
        # Ranks of several sizes go up together, each as far as it goes.
        ranks = [like(largest, [max(1, min(side, round(step * side / most))) for side in as_tuple(largest)]) for step in steps]
        size = math.prod(shape)
        costs = [method.parameters(shape, rank) for rank in ranks]
        smaller = [(rank, cost, step / most) for rank, cost, step in zip(ranks, costs, steps) if cost < size]
        if has_spectra(method):
            lost = [Spectrum(matrix).errors for matrix in method.matrices(weight)]
            errors = [sum(e[r] for e, r in zip(lost, as_tuple(rank))) for rank, _, _ in smaller]
            whole = lost[0][0]
        else:
            dense = np.asarray(weight, np.float64)
            errors = [float(np.sum((dense - np.asarray(unpack(method.factorize(weight, r)))) ** 2)) for r, _, _ in smaller]
            whole = float(np.sum(dense**2))
        scale = 1 / whole if self.relative and whole > 0 else 1.0
        found = [Option(rank, unit * cost, scale * error, step) for (rank, cost, step), error in zip(smaller, errors)]
        return [*found, Option(None, unit * size, 0.0, 1.0)]
