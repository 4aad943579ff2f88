"""What all commands share: how an answer is printed, exit codes, JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lepton_jax.core.foreign_text import printable

OK, DIFFERENT, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class Answer(NamedTuple):
    """What a command found.

    Attributes:
      facts: what ``--json`` prints.
      text: what is printed without it.
      code: the exit code.
    """

    facts: Mapping[str, Any]
    text: str
    code: int = OK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Base of all commands: its fields are the arguments, its docstring the help.

    Example:
      >>> class Greet(Command):
      ...     def answer(self):
      ...         return Answer({"hello": 1}, "hello")
      >>> Greet()(), Greet(json=True)()
      hello
      {
        "hello": 1
      }
      (0, 0)
    """

    json: bool = False
    """Print JSON."""

    def answer(self) -> Answer:
        """Do the work; nothing is printed here but progress."""
        raise TypeError(f"{type(self).__name__} does not say what it answers")

    def __call__(self) -> int:
        """Print the answer, and return the exit code."""
        answer = self.answer()
        print(as_json(answer.facts) if self.json else printable(answer.text))
        return answer.code


def as_json(value: Any) -> str:
    """Return JSON for other programs; what is not finite as text.

    Example:
      >>> print(as_json({"a": float("inf")}))
      {
        "a": "inf"
      }
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)  # JSON's own escapes


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value
