"""What a call was given, held against what the annotations of its parameters ask for."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from lepton_jax.core.kinds import Kind, kind_of

Made = TypeVar("Made", bound=Callable[..., Any])


def checked(made: Made) -> Made:
    """Have the arguments of a function, or of a class, held against their annotations whenever it is called.

    What every public function owes its caller, in one place: an argument of a wrong type is named where it was given, not where
    it first hurts. The annotations say what is asked for, so that nothing is written twice; what they leave open (`Any`) stays
    open. Of an array only its being one is looked at, so that traced ones pass. All this is Python, done while a function is
    called or traced: a compiled program holds nothing of it.

    Raises:
      TypeError: when called with arguments that are not what the annotations ask for; names all of them in one line.

    Example:
      >>> @checked
      ... def double(x: float, *, times: int = 1) -> float:
      ...     return x * 2**times
      >>> double("3")
      Traceback (most recent call last):
      ...
      TypeError: double: x must be a number; got '3' (str).
    """
    return checked_but()(made)


def checked_but(*own: str) -> Callable[[Made], Made]:
    """Return `checked` for functions that look at some of their arguments themselves, since they have more to say.

    Args:
      own: the names of these.

    Example:
      >>> @checked_but("rank")
      ... def shorten(rank: int, x: float) -> None:
      ...     raise TypeError(f"a rank is 1 or more; got {rank}")
      >>> shorten("x", 1.0)
      Traceback (most recent call last):
      ...
      TypeError: a rank is 1 or more; got x
    """

    def wrap(made: Made) -> Made:
        if isinstance(made, type):
            made.__init__ = _wrapped(made.__init__, made.__name__, own)  # type: ignore[misc]
            return made
        return typing.cast(Made, _wrapped(made, made.__name__, own))

    return wrap


def _wrapped(function: Callable[..., Any], name: str, own: tuple[str, ...]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    kinds: dict[str, Kind] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal kinds
        if kinds is None:  # by the first call all that annotations name is defined
            kinds = {key: kind for key, kind in _kinds(function, signature).items() if key not in own}
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            takes = ", ".join(_shown(key, parameter.kind) for key, parameter in signature.parameters.items() if key != "self")
            raise TypeError(f"{name}: {error}; it takes {takes or 'nothing'}.") from None
        wrong = [(key, kinds[key], said) for key in given if key in kinds and (said := kinds[key].wrong(given[key]))]
        if wrong:
            text = "; ".join(f"{key} must be {kind.words}; got {said}" for key, kind, said in wrong)
            raise TypeError(f"{name}: {text}.")
        return function(*args, **kwargs)

    return call


def _shown(name: str, kind: Any) -> str:
    """A parameter as a caller has to write it: by place, or only by name."""
    return f"{name}=" if kind == inspect.Parameter.KEYWORD_ONLY else name


def _kinds(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Kind]:
    """What the parameters of a function ask for, by name; those that ask for nothing left out."""
    found = {}
    for name, parameter in signature.parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
            except NameError:  # imported only where types are checked
                continue
        if parameter.kind == parameter.VAR_POSITIONAL:
            annotation = tuple[annotation, ...] if annotation is not parameter.empty else annotation  # type: ignore[valid-type]
        elif parameter.kind == parameter.VAR_KEYWORD:
            annotation = dict[str, annotation]  # type: ignore[valid-type]
        kind = None if annotation is parameter.empty else kind_of(annotation)
        if kind is not None:
            found[name] = kind
    return found
