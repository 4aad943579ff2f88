"""Tables of results from columns that are declared, each once for all studies."""

import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.common.results import Result, accuracies, gain, numbers, spread
from experiments.common.tables import Lines


class Column(NamedTuple):
    """A title, and what stands below it: of a result, and of the one that it is compared with, if there is one."""

    title: str
    cell: Callable[[Result, Result | None], str]


def plain(title: str, cell: Callable[[Result], str]) -> Column:
    """Return a column that compares with nothing."""
    return Column(title, lambda result, _: cell(result))


def setting(title: str, name: str, show: Callable[[Any], str] = str) -> Column:
    """Return the column of a setting of the rows."""
    return plain(title, lambda result: show(result["settings"][name]))


def accuracy(title: str, name: str = "error", digits: int = 2) -> Column:
    """Return the column of an accuracy in percent, from the seeds' errors; empty where there are none."""
    return plain(title, lambda result: spread(accuracies(result, name), digits) if result.get(name) else "")


def figure(title: str, name: str, digits: int = 2) -> Column:
    """Return the column of a figure, mean and deviation; empty where it lacks."""
    return plain(title, lambda result: spread(numbers(result, name), digits) if name in result else "")


def mean(title: str, name: str, form: str = ",.0f") -> Column:
    """Return the column of a figure's mean; empty where it lacks."""
    return plain(title, lambda result: format(statistics.mean(numbers(result, name)), form) if name in result else "")


def time_ratio(title: str, batch: str) -> Column:
    """Return the column of the time over the dense network's, at a size of batch."""
    return plain(title, lambda r: f"{r['latency_ratio'][batch]:.2f}" if batch in r.get("latency_ratio", {}) else "")


def change(title: str) -> Column:
    """Return the column of the accuracy gained, in points."""
    return Column(title, lambda result, other: "" if other in (None, result) else f"{gain(result, other):+.2f}")


def smaller(title: str, digits: int = 2) -> Column:
    """Return the column of how many times fewer bytes the file has."""

    def cell(result: Result, other: Result | None) -> str:
        return "" if (times := times_smaller(result, other)) is None else f"{times:.{digits}f}x"

    return Column(title, cell)


def times_smaller(result: Result, other: Result | None) -> float | None:
    """Return how many times fewer bytes a result's file has than another's; None: one of them has none."""
    if other is None or "file_bytes" not in other or "file_bytes" not in result:
        return None
    return float(other["file_bytes"] / result["file_bytes"])


ROW = plain("row", lambda result: str(result["row"]))
COLUMNS = {
    column.title: column
    for column in (
        ROW,
        accuracy("accuracy"),
        accuracy("validation", "validation_error"),
        accuracy("best epoch", "best_error"),
        change("change"),
        smaller("smaller"),
        mean("parameters", "parameters"),
        mean("non-zeros", "nonzeros"),
        mean("bytes", "file_bytes"),
        mean("MACs", "macs"),
        time_ratio("time, 1", "1"),
        time_ratio("time, 128", "128"),
        plain("seconds a run", lambda r: f"{r['seconds'] / len(r['seeds']):.1f}" if "seconds" in r else ""),
    )
}
"""Columns of the common form, by their titles; what a result lacks stays empty."""
MEANT = {
    "seeds": "how many runs a mean is of",
    "accuracy %, last epoch": "on the test split, mean ± standard deviation over the seeds",
    "accuracy %, best epoch": "of the epoch that was best on validation data; of studies without such data, on the test split",
    "accuracy": "on the test split in percent after the last epoch, mean ± standard deviation over the seeds",
    "change": "against the row that is compared with, in points, the mean over the seeds",
    "smaller": "the bytes of the row that is compared with over this one's",
    "validation": "on examples held out of the training split, on which choices were made",
    "best epoch": "the accuracy after the epoch that was best on validation data, among those as sparse as the last",
    "parameters": "numbers that are stored, zeros too",
    "non-zeros": "of all parameters",
    "MACs": "multiply-accumulates of one example as the packed network runs, zeros included",
    "bytes": "of the `.lepton` file without its program; of the first seed's, where there is one number",
    "time": "the packed network's over the dense one's on the same machine, by batch: below 1 is faster",
    "seconds a run": "of training",
    "own figures": "of studies that measure something other than accuracy",
}
"""What titles mean that begin so."""


def explained(titles: Sequence[str]) -> str:
    """Say what columns mean.

    Example:
      >>> explained(["method", "seconds a run"])
      'seconds a run: of training.'
    """
    said = [f"{name}: {text}" for name, text in MEANT.items() if any(re.match(rf"{name}(,|$)", title) for title in titles)]
    return "; ".join(said) + "." if said else ""


COSTS = ("validation", "best epoch", "bytes", "MACs", "time, 1", "time, 128", "seconds a run")
"""What is said of every trained row besides its accuracy."""

Reference = Callable[[Result], Result | None]
"""Of a result, the one that it is compared with."""


def reference(results: Sequence[Result], row: str, *within: str) -> Reference:
    """Compare with a row of some name, of the same settings where these are named.

    Example:
      >>> results = [{"row": row, "settings": {"bits": bits}} for bits in (4, 8) for row in ("a", "none")]
      >>> reference(results, "none", "bits")(results[2]) is results[3]
      True
    """

    def same(one: Result, other: Result) -> bool:
        return all(one["settings"][name] == other["settings"][name] for name in within)

    return lambda result: next((other for other in results if other["row"] == row and same(other, result)), None)


def tabulate(results: Sequence[Result], columns: Sequence[Column | str], compare: Reference = lambda _: None) -> Lines:
    """Return the cells, the header first: a line a result.

    Args:
      results: of the lines.
      columns: those of `COLUMNS` by their titles.
      compare: says what a result is compared with.

    Example:
      >>> result = {"row": "a", "validation_error": [0.25], "file_bytes": 1000, "nonzeros": [1, 3], "latency_ratio": {"1": 0.5}}
      >>> tabulate([result], ("row", "validation", "best epoch", "non-zeros", "bytes", "time, 1", "time, 128"))[1]
      ('a', '75.00', '', '2', '1,000', '0.50', '')
    """
    declared = [COLUMNS[column] if isinstance(column, str) else column for column in columns]
    heads = tuple(column.title for column in declared)
    return [heads, *(tuple(column.cell(result, compare(result)) for column in declared) for result in results)]


def across(
    results: Sequence[Result],
    name: str,
    columns: Sequence[Column],
    *,
    head: str = "method",
    levels: Sequence[Any] | None = None,
    show: Callable[[Any], str] = str,
    compare: Reference = lambda _: None,
) -> Lines:
    """Return the cells, the header first: a line a row, and columns for each level of a setting.

    Args:
      results: one a row and level; where there is none, cells stay empty.
      name: of the setting.
      columns: in whose titles ``{}`` is the level.
      head: title of the rows' names.
      levels: in order; by default as they come.
      show: writes a level.
      compare: says what a result is compared with.

    Example:
      >>> results = [{"row": "a", "settings": {"bits": bits}, "error": [0.5]} for bits in (8, 4)]
      >>> across(results, "bits", (accuracy("W{}"),))
      [('method', 'W8', 'W4'), ('a', '50.00', '50.00')]
    """
    found = {(result["row"], result["settings"][name]): result for result in results}
    levels = list(dict.fromkeys(level for _, level in found)) if levels is None else levels
    lines = [(head, *(column.title.format(show(level)) for level in levels for column in columns))]
    for row in dict.fromkeys(row for row, _ in found):
        mine = [found.get((row, level)) for level in levels]
        lines.append((row, *("" if one is None else c.cell(one, compare(one)) for one in mine for c in columns)))
    return lines
