"""Results of studies: of one form, kept a file each, written with a report, averaged over seeds.

A result is a JSON object, a line of a study's table: ``row``, its name; ``settings``, what else tells it from results of that
name; ``seeds``; ``seconds`` of training all of them; ``revision`` of the code; and, if it has them, ``reference`` and
``source``, a paper's figure; ``latency_ratio``, batch -> time over the dense network's. Everything else is a figure: a number
for all seeds, or a list, one a seed. These mean the same in every study: ``error``, ``validation_error`` and ``best_error``,
fractions, of the last epoch and of that which was best on validation data; ``parameters``, ``nonzeros``, ``macs`` and
``file_bytes`` (without the program), counts. What a study measures in other units has other names.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.common import unfinished
from experiments.common.tables import revision

Result = dict[str, Any]
"""A line of a study's table; see the top of this file."""


def save_report(path: Path, name: str, text: Sequence[str], results: Sequence[Result]) -> None:
    """Write a report of paragraphs, and `summary.json` beside it; checkpoints of the run's trainings are removed."""
    path.write_text("\n\n".join(text) + "\n")
    save_whole(path.with_name("summary.json"), {"name": name, "results": list(results)})
    unfinished.remove(path.parent)


def kept(path: Path, make: Callable[[], Result]) -> Result:
    """Read a finished result, or make it and write it, with the revision of the code, so that it need not be run again.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "rows" / "dense.json"
      >>> first = kept(path, lambda: {"row": "dense", "error": [0.25]})
      >>> kept(path, lambda: {}) == first, first["error"]
      (True, [0.25])
    """
    if not path.exists():
        save_result(path, {**make(), "revision": revision()})
    return dict(json.loads(path.read_text()))


def save_result(path: Path, result: Result) -> None:
    """Write a finished result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, result)


def save_whole(path: Path, data: Any) -> None:
    """Write JSON so that the file is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n")
    part.replace(path)


def numbers(result: Result, name: str) -> list[float]:
    """Return a figure's numbers: one a seed, or one for all.

    Example:
      >>> numbers({"macs": 3, "nonzeros": [1, 2]}, "macs"), numbers({"macs": 3, "nonzeros": [1, 2]}, "nonzeros")
      ([3], [1, 2])
    """
    return result[name] if isinstance(result[name], list) else [result[name]]


def seeds_of(results: Sequence[Result]) -> str:
    """Write the seeds of a study."""
    return ", ".join(map(str, results[0]["seeds"]))


def accuracies(result: Result, name: str = "error") -> list[float]:
    """Return the seeds' accuracies in percent.

    Example:
      >>> accuracies({"error": [0.25, 0.5]})
      [75.0, 50.0]
    """
    return [100 * (1 - error) for error in result[name]]


def gain(result: Result, other: Result) -> float:
    """Return the mean over seeds of the difference of accuracies, in points.

    Example:
      >>> round(gain({"error": [0.1, 0.2]}, {"error": [0.2, 0.2]}), 6)
      5.0
    """
    return statistics.mean(a - b for a, b in zip(accuracies(result), accuracies(other), strict=True))


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 of a single value.

    Example:
      >>> deviation([1.0, 2.0, 3.0]), deviation([1.0])
      (1.0, 0.0)
    """
    return statistics.stdev(values) if len(values) > 1 else 0.0


SHOWN = ("validation", "best epoch", "parameters", "non-zeros", "bytes", "MACs", "time, 1", "time, 128", "seconds a run")
"""Columns of the common form; what a result lacks stays empty."""


def shown(result: Result, columns: Sequence[str]) -> tuple[str, ...]:
    """Return some of the cells of `SHOWN`.

    Example:
      >>> result = {"validation_error": [0.25], "file_bytes": 1000, "nonzeros": [1, 3], "latency_ratio": {"1": 0.5, "128": 2.0}}
      >>> shown({**result, "best_error": [0.5], "seconds": 3.0, "seeds": [0, 1]}, SHOWN)
      ('75.00', '50.00', '', '2', '1,000', '', '0.50', '2.00', '1.5')
    """
    cells = {
        "validation": spread(accuracies(result, "validation_error")) if result.get("validation_error") else "",
        "best epoch": spread(accuracies(result, "best_error")) if "best_error" in result else "",
        "parameters": f"{result['parameters']:,}" if "parameters" in result else "",
        "non-zeros": f"{statistics.mean(result['nonzeros']):,.0f}" if "nonzeros" in result else "",
        "bytes": f"{result['file_bytes']:,}" if "file_bytes" in result else "",
        "MACs": f"{result['macs']:,}" if "macs" in result else "",
        **{f"time, {batch}": f"{ratio:.2f}" for batch, ratio in result.get("latency_ratio", {}).items()},
        "seconds a run": f"{result['seconds'] / len(result['seeds']):.1f}" if "seconds" in result else "",
    }
    return tuple(cells.get(name, "") for name in columns)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write mean and standard deviation.

    Example:
      >>> spread([1.0, 2.0, 3.0]), spread([1.0]), spread([1000, 1002], 0)
      ('2.00 ± 1.00', '1.00', '1,001 ± 1')
    """
    around = f" ± {deviation(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{around}"
