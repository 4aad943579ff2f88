"""Metrics as JSON lines, one object a line, resumable."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Append rows to a file of JSON lines.

    Each row has the tags, the step and the values. A value that is not finite is written as a string ("nan", "inf"), since
    JSON has no such number. Every row is flushed as it is written.

    Args:
      path: the file; made, with its folder, if it is not there.
      **tags: put into every row, e.g. ``phase="prune"``.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> MetricsWriter(path, phase="dense").write(10, {"loss": 0.5})
      >>> path.read_text()
      '{"phase": "dense", "step": 10, "loss": 0.5}\\n'
    """

    def __init__(self, path: str | os.PathLike[str], **tags: str) -> None:
        self.path = Path(path)
        self.tags = tags

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row."""
        row = {**self.tags, "step": step, **{name: _number(value) for name, value in values.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop all rows from the first one that has these tags and a later step than `step`; also a half-written last line.

        What a resumed run calls, so that the file becomes what an uninterrupted run would have written.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            row = json.loads(line) if line.endswith("\n") else None
            if row is None or (row["step"] > step and all(row.get(name) == tag for name, tag in self.tags.items())):
                break
            kept.append(line)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)

    def close(self) -> None:
        """Do nothing: the file is open only while a row is written."""


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a metrics file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> MetricsWriter(path).write(10, {"loss": 0.5})
      >>> read_metrics(path)
      [{'step': 10, 'loss': 0.5}]
    """
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _number(value: Any) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
