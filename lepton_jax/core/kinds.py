"""What an annotation asks for, in words, and whether a value is of it."""

import dataclasses
import os
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np
from jax.export import is_symbolic_dim

from lepton_jax.core.foreign_text import shown
from lepton_jax.core.typing import PyTree, Select

_SELECT = "a glob over paths such as '*/kernel', several in a tuple, or a predicate (path, leaf) -> bool"
_MOST = 100
"""Elements of a sequence or a mapping that are looked at."""


class Kind(NamedTuple):
    """What an annotation asks for.

    Args:
      words: to be read after "must be".
      wrong: of a value, what it is instead, or "" if it is right.
    """

    words: str
    wrong: Callable[[Any], str]


def kind_of(annotation: Any) -> Kind | None:
    """Return what an annotation asks for; None if it leaves that open, or asks for what cannot be seen from outside.

    Example:
      >>> kind_of(tuple[int, ...]).words, kind_of(float | None).wrong("3"), kind_of(Any)
      ('a tuple, each a whole number', "'3' (str)", None)
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation == Select:
        return Kind(_SELECT, lambda value: "" if _selects(value) else shown(repr(value), 60))
    if origin is Annotated:
        return Kind("a tree of arrays", wrong_leaf) if annotation is PyTree else kind_of(args[0])
    if origin in (Union, types.UnionType):
        return _either([kind_of(one) for one in args])
    if origin is Literal:
        kinds = tuple({type(word) for word in args})  # of which word it must be, `errors.check_option` says
        return Kind("one of " + ", ".join(map(repr, args)), lambda value: "" if isinstance(value, kinds) else described(value))
    plain = origin or annotation
    if annotation == Sequence[str]:  # a text is one
        return _either([kind_of(str), kind_of(tuple[str, ...])])
    if plain in _SIMPLE:
        words, fits = _SIMPLE[plain]
        simple = Kind(words, lambda value: "" if fits(value) else described(value))
        return _of_parts(simple, args) if plain in _PARTS else simple
    if getattr(plain, "_is_protocol", False):
        return _with_members(plain) or kind_of(Callable)
    if not isinstance(plain, type) or plain is object or plain.__module__ == "typing":
        return None
    return Kind(f"a {plain.__name__}", lambda value: "" if isinstance(value, plain) else described(value))


def check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raise unless a value is what an annotation asks for.

    Example:
      >>> check_kind("trace: apply", 3, Callable)
      Traceback (most recent call last):
      ...
      TypeError: trace: apply must be a function; got 3 (int).
    """
    kind = kind_of(annotation)
    if kind is not None and (said := kind.wrong(value)):
        raise TypeError(f"{name} must be {kind.words}; got {said}.")


def fields_of(kind: type) -> dict[str, Kind]:
    """Return what the fields of a dataclass ask for, by name; those that are open left out.

    Example:
      >>> @dataclasses.dataclass
      ... class Point:
      ...     x: float
      ...     tag: Any
      >>> {name: kind.words for name, kind in fields_of(Point).items()}
      {'x': 'a number'}
    """
    hints = get_type_hints(kind)
    found = {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(kind)}
    return {name: one for name, one in found.items() if one is not None}


def described(value: Any) -> str:
    """Say briefly what a value is.

    Example:
      >>> described("3"), described(np.ones(2)), described(None), described({})
      ("'3' (str)", 'an array float64[2]', 'None', 'a dict')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if _is_array(value):
        return f"an array {value.dtype}[{','.join(map(str, value.shape))}]"
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, (str, bytes, Real)):
        return f"{shown(repr(value), 60)} ({type(value).__name__})"
    if isinstance(value, types.FunctionType):
        return f"the function {shown(value.__name__, 60)}"
    return f"a {type(value).__name__}"


def _is_array(value: Any) -> bool:
    """Also what stands for one: a shape with a dtype, a packed leaf, a traced value."""
    return not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype")


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_number(value: Any) -> bool:
    return (isinstance(value, Real) and not _is_flag(value)) or is_symbolic_dim(value)


def _selects(value: Any) -> bool:
    several = value if isinstance(value, (tuple, list)) else (value,)
    return callable(value) or all(isinstance(one, str) for one in several)


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes))


def _with_members(protocol: Any) -> Kind | None:
    """A kind that is known by what it has."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False) and base.__module__ != "typing"]
    names = {name for base in bases for name in (*vars(base), *getattr(base, "__annotations__", ()))}
    members = sorted(name for name in names if name[0] != "_")
    words = f"a {protocol.__name__}, with {', '.join(members)}"
    return (
        None
        if not members
        else Kind(words, lambda value: "" if all(hasattr(value, name) for name in members) else described(value))
    )


_SIMPLE: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: _is_flag(value) or _is_array(value)),
    int: ("a whole number", lambda value: _is_number(value) or _is_array(value)),  # 4.0 is left to `errors.check_whole`
    float: ("a number", lambda value: _is_number(value) or _is_array(value)),
    jax.Array: ("an array", lambda value: _is_array(value) or isinstance(value, Real)),
    np.ndarray: ("an array", lambda value: _is_array(value) or isinstance(value, Real)),
    str: ("a text", lambda value: isinstance(value, str)),
    os.PathLike: ("a path", lambda value: isinstance(value, os.PathLike)),
    types.NoneType: ("None", lambda value: value is None),
    Callable: ("a function", callable),
    Mapping: ("a mapping", lambda value: isinstance(value, Mapping)),
    dict: ("a mapping", lambda value: isinstance(value, Mapping)),
    tuple: ("a tuple", lambda value: isinstance(value, (tuple, list))),
    list: ("a list", lambda value: isinstance(value, (tuple, list))),
    Sequence: ("a sequence", lambda value: (isinstance(value, Sequence) and not _is_text(value)) or _is_array(value)),
    Collection: ("a collection", lambda value: isinstance(value, Collection) and not _is_text(value)),
    Iterable: ("an iterable", lambda value: hasattr(value, "__iter__") or hasattr(value, "__getitem__")),
    Iterator: ("an iterator", lambda value: hasattr(value, "__next__")),
}
_PARTS = {Mapping, dict, tuple, list, Sequence}


def _of_parts(whole: Kind, args: tuple[Any, ...]) -> Kind:
    """A kind whose parts are of a kind, too."""
    several = [one for one in args if one is not Ellipsis]
    part = kind_of(several[-1]) if several and len(set(several[-1:] if "mapping" in whole.words else several)) == 1 else None
    if part is None:
        return whole

    def wrong(value: Any) -> str:
        if said := whole.wrong(value):
            return said
        if _is_array(value):
            return ""
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))[:_MOST]
        return next((f"{said} at {shown(str(key), 60)}" for key, one in items if (said := part.wrong(one))), "")

    return Kind(f"{whole.words}, each {part.words}", wrong)


def _either(kinds: list[Kind | None]) -> Kind | None:
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None

    def wrong(value: Any) -> str:
        said = [kind.wrong(value) for kind in known]
        return "" if "" in said else max(said, key=lambda one: " at " in one)

    return Kind(" or ".join(kind.words for kind in known), wrong)


def wrong_leaf(tree: Any) -> str:
    """Return what the first leaf of a tree that is no array is instead, and where; "" if there is none.

    Example:
      >>> wrong_leaf({"a": np.ones(2), "b": {"c": "x"}})
      "'x' (str) at b/c"
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not (_is_array(leaf) or isinstance(leaf, (Real, complex))):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            return described(leaf) + (f" at {shown(where)}" if where else "")
    return ""
