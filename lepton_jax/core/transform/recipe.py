"""The recipe of a transform, for `repr`: the call that made it, with the arguments that were given."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, Self, TypeVar

from lepton_jax.core.arguments import checked

Arguments = ParamSpec("Arguments")

_SHOWN = 4
"""Items of a list or mapping that are shown."""


class Recipe:
    """A call, kept as it was; written out only when it is looked at."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs

    def __repr__(self) -> str:
        return f"{self.name}({', '.join([*map(short, self.args), *_given(self.kwargs)])})"


class _Named(Protocol):
    def _replace(self, *, recipe: Recipe) -> Self: ...


Made = TypeVar("Made", bound=_Named)


@checked
def named(factory: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Let what a function returns show the function's name and the arguments it was given.

    Example:
      >>> from lepton_jax import Transform, identity
      >>> @named
      ... def halved(times: int, *, select: str = "*") -> Transform:
      ...     return identity()
      >>> halved(2, select="a/*")
      halved(2, select='a/*')
    """

    @functools.wraps(factory)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        return factory(*args, **kwargs)._replace(recipe=Recipe(factory.__name__, args, kwargs))

    return call


def short(value: Any) -> str:
    """Return a value on one line: arrays as dtype and shape, settings without what is a default.

    Example:
      >>> import jax.numpy as jnp
      >>> short({"a": jnp.ones((2, 3)), "b": (1, jnp.tanh)})
      "{'a': float32[2,3], 'b': (1, tanh)}"
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple) and hasattr(value, "recipe"):
        return repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.init]
        given = {field.name: getattr(value, field.name) for field in fields if not _default(field, value)}
        return f"{type(value).__name__}({', '.join(_given(given))})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"{type(value).__name__}({'...' if value else ''})"
    if isinstance(value, Mapping):
        return f"{{{_some([f'{key!r}: {short(one)}' for key, one in value.items()])}}}"
    if isinstance(value, list | tuple):
        brackets = "[]" if isinstance(value, list) else "()"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"{brackets[0]}{_some(list(map(short, value)))}{comma}{brackets[1]}"
    if isinstance(value, functools.partial):
        return f"partial({', '.join([short(value.func), *map(short, value.args), *_given(value.keywords)])})"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    return repr(value) if type(value).__repr__ is not object.__repr__ else f"{type(value).__name__}(...)"


def _given(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={short(value)}" for name, value in values.items()]


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN] + ([f"... {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []))


def _default(field: dataclasses.Field[Any], value: Any) -> bool:
    return isinstance(field.default, bool | int | float | str | None) and getattr(value, field.name) == field.default
