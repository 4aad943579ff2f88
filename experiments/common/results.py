"""Results of studies: of one form, kept a file each, written with a report, averaged over seeds.

A result is a JSON object, a line of a study's table: ``row``, its name; ``settings``, what else tells it from results of that
name; ``seeds``; ``seconds`` of training all of them; ``revision`` of the code; and, if it has them, ``reference`` and
``source``, a paper's figure; ``latency_ratio``, batch -> time over the dense network's. Everything else is a figure: a number
for all seeds, or a list, one a seed. These mean the same in every study: ``error``, ``validation_error`` and ``best_error``,
fractions, of the last epoch and of that which was best on validation data; ``parameters``, ``nonzeros``, ``macs`` and
``file_bytes`` (without the program), counts. What a study measures in other units has other names.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common import unfinished
from lepton_jax.core.files import read_json, write_json, write_text

Result = dict[str, Any]
"""A line of a study's table; see the top of this file."""


def save_report(path: Path, name: str, text: Sequence[str], results: Sequence[Result]) -> None:
    """Write a report of paragraphs, and `summary.json` beside it; checkpoints of the run's trainings are removed."""
    write_text(path, "\n\n".join(text) + "\n")
    write_json(path.with_name("summary.json"), {"name": name, "results": list(results)})
    unfinished.remove(path.parent)


def save_result(path: Path, result: Result) -> None:
    """Write a finished result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def load_result(path: Path) -> Result:
    """Read a finished result.

    Raises:
      ArtifactError: if the file is damaged.
    """
    return read_json(path, "Delete it, and run the command with --resume: it is measured again.")


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


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write mean and standard deviation.

    Example:
      >>> spread([1.0, 2.0, 3.0]), spread([1.0]), spread([1000, 1002], 0)
      ('2.00 ± 1.00', '1.00', '1,001 ± 1')
    """
    around = f" ± {deviation(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{around}"
