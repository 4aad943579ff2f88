"""What a search may choose from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers from one to another; whole ones if both ends are.

    Args:
      low: the least.
      high: the greatest.
      log: search by the logarithm: of rates.

    Raises:
      ValueError: for ends in the wrong order, or a logarithm of what is not above 0.

    Example:
      >>> Range(low=1e-4, high=1e-2, log=True).whole, Range(low=1, high=6).whole
      (False, True)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        with collect("Range") as problems:
            if not self.low < self.high:
                problems.append(f"low must be below high; got {self.low!r} and {self.high!r}")
            if self.log and not self.low > 0:
                problems.append(f"log=True needs low above 0; got {self.low!r}")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = Mapping[str, Range | Sequence[Any]]
"""By name, a `Range`, or a list of what may be taken."""


def check_space(space: Space) -> None:
    """Raise for what no search can choose from.

    Raises:
      ValueError: with all that is wrong.

    Example:
      >>> check_space({"rate": Range(low=1e-4, high=1e-2, log=True), "distil": [True, False]})
    """
    with collect("search: space") as problems:
        if not space:
            problems.append('give at least one setting: {"rate": Range(low=1e-4, high=1e-2, log=True), "bits": [2, 3, 4]}')
        for name, given in space.items():
            if not isinstance(given, Range) and (isinstance(given, str) or not isinstance(given, Sequence) or not given):
                problems.append(f"{name}: must be a Range, or a list of at least one value; got {given!r}")


def suggested(trial: Any, space: Space) -> dict[str, Any]:
    """Return settings that a trial of Optuna chooses."""
    found: dict[str, Any] = {}
    for name, given in space.items():
        if isinstance(given, Range):
            suggest = trial.suggest_int if given.whole else trial.suggest_float
            found[name] = suggest(name, given.low, given.high, log=given.log)
        else:  # by their places: what stands there may be anything
            found[name] = given[trial.suggest_categorical(name, list(range(len(given))))]
    return found


def settings_of(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return the settings that a trial's parameters mean.

    Example:
      >>> settings_of({"bits": 1, "rate": 0.5}, {"bits": ["few", "many"], "rate": Range(low=0.1, high=0.9)})
      {'bits': 'many', 'rate': 0.5}
    """
    return {name: value if isinstance(space[name], Range) else space[name][value] for name, value in params.items()}  # type: ignore[index]
