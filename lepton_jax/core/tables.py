"""Tables of plain text."""

from collections.abc import Collection, Sequence
from typing import Any


def table(rows: Sequence[Sequence[Any]], left: Collection[int] = (0,)) -> str:
    """Return rows, the head among them, as aligned columns two blanks apart.

    Args:
      rows: cells, as many in each.
      left: the columns that begin alike; the others, numbers, end alike.

    Example:
      >>> print(table([("name", "n"), ("a", 10), ("bcdef", 2)]))
      name    n
      a      10
      bcdef   2
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [[c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))] for row in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)
