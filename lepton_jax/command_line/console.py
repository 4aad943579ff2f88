"""What all commands share: exit codes, tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

OK, DIFFERENT, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """Return aligned columns, the first `left` of them to the left.

    Example:
      >>> print(table(("name", "n"), [("a", 10), ("bcdef", 2)]))
      name    n
      a      10
      bcdef   2
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [[c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))] for row in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def as_json(value: Any) -> str:
    """Return JSON for other programs; what is not finite as text.

    Example:
      >>> print(as_json({"a": float("inf")}))
      {
        "a": "inf"
      }
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value
