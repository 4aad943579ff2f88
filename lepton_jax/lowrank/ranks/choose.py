"""Which weights are worth factors: ranks by a rule, and dense where factors would be larger, or slower."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.finite import check_finite
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.lowrank.layer_times import layer_times
from lepton_jax.lowrank.method import Method, Rank, RankRule, placed
from lepton_jax.lowrank.svd import Svd


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankChoice:
    """What is made of one weight.

    Attributes:
      path: of the leaf.
      shape: of the leaf.
      rank: of its factors; None: stays dense.
      reason: why it stays dense; empty if it does not.
      dense: numbers of the dense weight.
      factored: numbers of the factors that were looked at, whether they are taken or not; `dense` if there were none.
      speedup: the dense layer's time over the factored one's, if measured.

    Example:
      >>> str(RankChoice(path="a", shape=(4, 4), rank=1, reason="", dense=16, factored=8))
      'a (4, 4): rank 1, 16 -> 8 numbers'
    """

    path: Path
    shape: tuple[int, ...]
    rank: Rank | None
    reason: str
    dense: int
    factored: int
    speedup: float | None = None

    def __str__(self) -> str:
        speed = "" if self.speedup is None else f", {self.speedup:.2f}x as fast"
        if self.rank is None:
            return f"{self.path} {self.shape}: dense, {self.reason}{speed}"
        return f"{self.path} {self.shape}: rank {self.rank}, {self.dense:,} -> {self.factored:,} numbers{speed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankReport:
    """What is made of every selected weight, and why; print it.

    Example:
      >>> print(RankReport(choices=(RankChoice(path="a", shape=(4, 4), rank=1, reason="", dense=16, factored=8),)))
      a (4, 4): rank 1, 16 -> 8 numbers
      1 of 1 weights in factors: 16 -> 8 numbers
    """

    choices: tuple[RankChoice, ...]

    @property
    def ranks(self) -> dict[Path, Rank]:
        """The ranks, for ``low_rank(report.ranks, ...)``; what stays dense is not there."""
        return {choice.path: choice.rank for choice in self.choices if choice.rank is not None}

    @property
    def reasons(self) -> dict[Path, str]:
        """Why weights stay dense, by path."""
        return {choice.path: choice.reason for choice in self.choices if choice.rank is None}

    @property
    def parameters(self) -> int:
        """Numbers of all selected weights, those that stay dense included."""
        return sum(choice.dense if choice.rank is None else choice.factored for choice in self.choices)

    def __str__(self) -> str:
        dense = sum(choice.dense for choice in self.choices)
        total = f"{len(self.ranks)} of {len(self.choices)} weights in factors: {dense:,} -> {self.parameters:,} numbers"
        return "\n".join([*map(str, self.choices), total])


@checked
def choose_ranks(
    params: PyTree, rule: RankRule | Mapping[Path, Rank], *, method: Method = Svd(), select: Select = paths.matrices
) -> RankReport:
    """Choose a rank for every selected weight; dense where that cannot be done, or would not be smaller.

    Args:
      params: concrete arrays (not inside jit).
      rule: e.g. ``Energy(energy=0.9)``, or ranks by path.
      method: the factorization.
      select: which leaves.

    Returns:
      a report with ``ranks`` for ``low_rank(report.ranks, method=method)`` and a reason for every weight that stays dense.

    Raises:
      ValueError: for a selector that matches nothing, weights that are not finite, or what the rule refuses.
      TypeError: for traced weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank import Energy
      >>> params = {"a": jnp.ones((8, 8)), "b": jnp.eye(8)}
      >>> print(choose_ranks(params, Energy(energy=0.9)))
      a (8, 8): rank 1, 64 -> 16 numbers
      b (8, 8): dense, factors of rank 8 are not smaller: 128 numbers
      1 of 2 weights in factors: 128 -> 80 numbers
    """
    weights = paths.select(params, select)
    check_finite("choose_ranks", weights)
    name, method = type(method).__name__, placed(method, select, weights)
    refusals = {path: method.at(path).refusal(tuple(weight.shape)) for path, weight in weights.items()}
    usable = {path: weight for path, weight in weights.items() if refusals[path] is None}
    ranks = rule if isinstance(rule, Mapping) else rule.ranks(usable, method)
    return RankReport(choices=tuple(_choice(path, weights[path], ranks, refusals[path], method, name) for path in weights))


def _choice(
    path: Path, weight: Array, ranks: Mapping[Path, Rank], refusal: str | None, method: Method, name: str
) -> RankChoice:
    shape = tuple(weight.shape)
    dense = math.prod(shape)
    rank = ranks.get(path) if refusal is None else None
    factored = dense if rank is None else method.at(path).parameters(shape, rank)
    if refusal is not None:
        reason = f"{name} cannot factorize it: it {refusal}"
    elif rank is None:
        reason = "as the rule says"
    else:
        reason = "" if factored < dense else f"factors of rank {rank} are not smaller: {factored:,} numbers"
    return RankChoice(path=path, shape=shape, rank=None if reason else rank, reason=reason, dense=dense, factored=factored)


@checked
def keep_faster(
    report: RankReport, apply: Any, params: PyTree, *inputs: Any, method: Method = Svd(), least: float = 1.0, rounds: int = 20
) -> RankReport:
    """Measure every layer in factors against itself dense, and keep dense what is not faster.

    The layer's own operation is run at the shapes that it has in the model, compiled, on this machine's device; both in turn,
    medians. It says nothing of other devices or batch sizes.

    Args:
      report: from `choose_ranks`.
      apply: ``apply(params, *inputs)``, with the params that the ranks are of.
      params: of the model.
      inputs: of the batch size that the model shall be fast for.
      method: the factorization.
      least: the speed-up that factors must have, above 0; 1.1 asks for a tenth.
      rounds: how often each is run.

    Returns:
      the report with the speed-ups, and those layers dense that have less. A layer whose operation cannot be taken out by
      itself (transposed, inside a scan) is kept as it was, without a figure.

    Raises:
      ValueError: for `least` or `rounds` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.ranks import Fixed
      >>> params = {"w": jnp.ones((256, 256))}
      >>> report = keep_faster(
      ...     choose_ranks(params, Fixed(rank=1)), lambda p, x: x @ p["w"], params, jnp.ones((64, 256)), least=1e-9
      ... )
      >>> report.ranks, report.choices[0].speedup is not None
      ({'w': 1}, True)
    """
    if not least > 0:
        raise ValueError(f"keep_faster: least must be above 0; got {least}. 1.0 asks that factors be no slower.")
    weights = paths.flatten(params)
    factors = {path: method.at(path).factorize(weights[path], rank) for path, rank in report.ranks.items()}
    times = layer_times(apply, params, factors, *inputs, rounds=rounds)
    return RankReport(choices=tuple(_kept(choice, times, least) for choice in report.choices))


def _kept(choice: RankChoice, times: Mapping[Path, tuple[float, float]], least: float) -> RankChoice:
    if choice.rank is None or choice.path not in times:
        return choice
    dense, factored = times[choice.path]
    speedup = dense / factored
    if speedup >= least:
        return dataclasses.replace(choice, speedup=speedup)
    reason = f"factors of rank {choice.rank} were measured and are not faster"
    return dataclasses.replace(choice, rank=None, reason=reason, speedup=speedup)
