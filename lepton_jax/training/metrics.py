"""Metrics as JSON lines, one object a line, resumable."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.files import ArtifactError, write_text


@checked
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
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, before)
            why = error.strerror or error
            raise ArtifactError(f"cannot write {self.path}: {why}. Its rows are as they were; free space.") from error

    def rewind(self, step: int) -> None:
        """Drop all rows from the first one that has these tags and a later step than `step`; also a half-written last line.

        What a resumed run calls, so that the file becomes what an uninterrupted run would have written.
        """
        if not self.path.exists():
            return
        kept = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
            row = _row(self.path, number, line) if line.endswith("\n") else None
            if row is None or (row["step"] > step and all(row.get(name) == tag for name, tag in self.tags.items())):
                break
            kept.append(line)
        write_text(self.path, "".join(kept))

    def close(self) -> None:
        """Do nothing: the file is open only while a row is written."""


@checked
def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a metrics file.

    Raises:
      ArtifactError: if a line is damaged; with its number.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> MetricsWriter(path).write(10, {"loss": 0.5})
      >>> read_metrics(path)
      [{'step': 10, 'loss': 0.5}]
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [_row(Path(path), number, line) for number, line in enumerate(lines, 1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        row["step"] + 0  # is there, and a number
    except (ValueError, TypeError, KeyError) as error:
        remedy = "Delete that line; if it is the last one, resuming the run drops it."
        raise ArtifactError(f"{path} is damaged: line {number} is no row of metrics ({error}). {remedy}") from error
    return row


def _number(value: Any) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
