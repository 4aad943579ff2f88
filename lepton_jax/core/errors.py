"""Errors that collect every problem before they are raised, so that one run shows them all."""

import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import jax

from lepton_jax.core.files import ArtifactError as ArtifactError
from lepton_jax.core.foreign_text import printable

_MOST_LINES, _LONGEST_LINE = 500, 2000


class Problems(list[str]):
    """A list of messages, raised as one error by `collect`."""


@contextmanager
def collect(heading: str, kind: type[Exception] = ValueError) -> Iterator[Problems]:
    """Gather problems in the block and raise them together when it ends.

    Args:
      heading: the first line of the message; what was asked for.
      kind: the exception to raise.

    Raises:
      kind: if the block appended anything, with one line a problem.

    Example:
      >>> with collect("cannot prune") as problems:
      ...     problems.append("a/kernel: has no axes")
      Traceback (most recent call last):
      ...
      ValueError: cannot prune:
        a/kernel: has no axes
    """
    problems = Problems()
    yield problems
    if problems:
        lines = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in problems[:_MOST_LINES]]
        rest = [f"and {len(problems) - _MOST_LINES} more"] if len(problems) > _MOST_LINES else []
        raise kind(printable("\n  ".join([f"{heading}:", *lines, *rest])))


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs, so that no check can look at it.

    Example:
      >>> is_traced(0.5)
      False
    """
    return isinstance(value, jax.core.Tracer)


def check_fraction(name: str, value: float | jax.Array) -> None:
    """Raise unless ``0 <= value < 1``; for sparsities and other fractions removed. What is traced passes.

    Example:
      >>> check_fraction("sparsity", 1.9)
      Traceback (most recent call last):
      ...
      ValueError: sparsity must be in [0, 1), the fraction of weights removed; got 1.9. For 90 %, write 0.9.
    """
    if is_traced(value):
        return
    try:
        inside = bool(0 <= value < 1)
    except (TypeError, ValueError):  # text, None, an array of several
        raise TypeError(
            f"{name} must be a number in [0, 1), the fraction of weights removed; got {one_line(repr(value), 60)}."
        ) from None
    if not inside:
        raise ValueError(f"{name} must be in [0, 1), the fraction of weights removed; got {value}. For 90 %, write 0.9.")


def check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless `value` is a whole number from `low` to `high`; 4.0 is none.

    Example:
      >>> check_whole("Uniform: bits", 9, 2, 8)
      Traceback (most recent call last):
      ...
      ValueError: Uniform: bits must be a whole number from 2 to 8; got 9.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        upwards = "up" if high is None else f"to {high}"
        raise ValueError(f"{name} must be a whole number from {low} {upwards}; got {value!r}.")


def check_option(name: str, value: str, literal: Any) -> None:
    """Raise unless `value` is one of the words of a `typing.Literal`.

    Args:
      name: of the option.
      value: what was given.
      literal: the type, ``Literal["a", "b"]``.

    Raises:
      ValueError: with the words there are.

    Example:
      >>> from typing import Literal
      >>> check_option("stem", "smal", Literal["imagenet", "small"])
      Traceback (most recent call last):
      ...
      ValueError: stem must be one of 'imagenet', 'small'; got 'smal'.
    """
    if value not in get_args(literal):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(literal)))}; got {value!r}.")


def one_line(error: object, most: int = 300) -> str:
    """Return what an error of others says, on one line that is not too long.

    Example:
      >>> one_line(ValueError("a\\n   b"))
      'a b'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."
