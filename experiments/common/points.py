"""Rows of studies as points of accuracy and cost, and which of them no other beats."""

import dataclasses
import statistics
from collections.abc import Sequence

from experiments.common.results import Result, accuracies, deviation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One row in the figure.

    Args:
      cost: bytes or multiplications; less is better.
      accuracy: mean, in percent.
      deviation: of the accuracy over seeds.
      series: what it is drawn as.
      label: its name, written if it is on the front.
      task: only points of one task are compared; each has a front of its own.
      panel: its title.
    """

    cost: float
    accuracy: float
    deviation: float
    series: str
    label: str
    task: str = ""
    panel: str = ""


def point_of(result: Result, cost: str, *, series: str, label: str, task: str = "", panel: str = "") -> Point:
    """Return the point of a result that has errors and a cost, a number or one a seed.

    Example:
      >>> point_of({"error": [0.25, 0.5], "file_bytes": [100, 300]}, "file_bytes", series="a", label="a").cost
      200
    """
    values, amount = accuracies(result), result[cost]
    where = {"series": series, "label": label, "task": task, "panel": panel}
    amount = statistics.mean(amount) if isinstance(amount, Sequence) else amount
    return Point(cost=amount, accuracy=statistics.mean(values), deviation=deviation(values), **where)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: that costs no more, is no less accurate, and differs in one of both.

    Example:
      >>> sizes = [(10, 90.0), (20, 95.0), (30, 94.0)]
      >>> some = [Point(cost=c, accuracy=a, deviation=0, series="", label="") for c, a in sizes]
      >>> [point.cost for point in pareto(some)]
      [10, 20]
    """
    front = [point for point in points if not any(_beats(other, point) for other in points)]
    return sorted(front, key=lambda point: point.cost)


def _beats(one: Point, other: Point) -> bool:
    better = one.cost < other.cost or one.accuracy > other.accuracy
    return better and one.cost <= other.cost and one.accuracy >= other.accuracy
