"""Results of studies: kept a file each, written with a report, averaged over seeds."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""One cell of the table: its row, sparsity, and figures by seed."""


def save_report(path: Path, name: str, text: Sequence[str], results: Sequence[Result]) -> None:
    """Write a report of paragraphs, and `summary.json` beside it."""
    path.write_text("\n\n".join(text) + "\n")
    save_whole(path.with_name("summary.json"), {"name": name, "results": list(results)})


def save_result(path: Path, result: Result) -> None:
    """Write a finished result, so that it need not be run again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, result)


def save_whole(path: Path, data: Any) -> None:
    """Write JSON so that the file is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n")
    part.replace(path)


def accuracies(result: Result, name: str = "error") -> list[float]:
    """Return the seeds' accuracies in percent.

    Example:
      >>> accuracies({"error": [0.25, 0.5]})
      [75.0, 50.0]
    """
    return [100 * (1 - error) for error in result[name]]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write mean and standard deviation.

    Example:
      >>> spread([1.0, 2.0, 3.0]), spread([1.0]), spread([1000, 1002], 0)
      ('2.00 ± 1.00', '1.00', '1,001 ± 1')
    """
    deviation = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{deviation}"
