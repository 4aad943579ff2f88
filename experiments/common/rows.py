"""The rows of a study: their names, and those that are to be run."""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

Row = TypeVar("Row")


def chosen(rows: Iterable[Row], only: Sequence[str], name: Callable[[Row], str] = attrgetter("name")) -> tuple[Row, ...]:
    """Return the rows of some names, or all if none is said.

    Example:
      >>> chosen(["dense", "small"], ["small"], name=str), chosen(["dense", "small"], [], name=str)
      (('small',), ('dense', 'small'))
    """
    return tuple(row for row in rows if not only or name(row) in only)


def check_rows(problems: list[str], names: Sequence[str], only: Sequence[str], *, field: str = "rows") -> None:
    """Say what is wrong with the names of rows, and with those that are to be run.

    Example:
      >>> problems = []
      >>> check_rows(problems, ["a", "a"], ["b"])
      >>> problems
      ["rows: at least one, each with a name of its own; got ['a', 'a']", "only: there is no row 'b'; there are a"]
    """
    if not names or len(set(names)) < len(names):
        problems.append(f"{field}: at least one, each with a name of its own; got {list(names)}")
    known = dict.fromkeys(names)
    unknown = [name for name in only if name not in known]
    problems.extend(f"only: there is no {field.removesuffix('s')} {name!r}; there are {', '.join(known)}" for name in unknown)
