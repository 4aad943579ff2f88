"""One check for options that are one of a few words."""

from typing import Any, get_args


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
