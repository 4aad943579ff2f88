"""Wrong values for every parameter of everything public, made from its annotation."""

import collections.abc as abc
import dataclasses
import importlib
import inspect
import os
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from test_docs import PACKAGES

from lepton_jax.core import schedules
from lepton_jax.core.typing import PyTree

RECORDS = {
    *("Account", "TensorAccount", "ArrayReport", "Report", "Cost", "Equation", "Layout", "OperationCost", "ParameterCost"),
    *("Traced", "Use", "Analysis", "Axes", "RankChoice", "RankReport", "Unpacked", "Decision", "Group", "Slices", "Plan"),
    *(
        "Verification",
        "LayerReport",
        "Operand",
        "Teacher",
        "LearnedWeight",
        "QuantizedModel",
        "Centroids",
        "Thresholded",
        "Held",
        "Directed",
    ),
}
"""What calls give back: nobody makes them by hand."""
PER_LEAF = {"is_packed", "is_coded"}
"""What answers for any object."""
MISSING = inspect.Parameter.empty


class Nothing:
    """Of no type that anyone asks for."""


def is_made_by_hand(value: Any) -> bool:
    """Whether a class holds settings: a dataclass that is no record, no packed leaf and no model of Linen."""
    leaf = value.__module__.startswith("lepton_jax.leaves") or hasattr(value, "parts") or hasattr(value, "unpack")
    return dataclasses.is_dataclass(value) and not (issubclass(value, nn.Module) or leaf or value.__name__ in RECORDS)


def public() -> dict[str, Any]:
    """All public functions and settings, by name."""
    found: dict[str, Any] = {}
    for module in (*map(importlib.import_module, PACKAGES), schedules):
        own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if (inspect.isfunction(value) and name not in PER_LEAF) or (inspect.isclass(value) and is_made_by_hand(value)):
                found.setdefault(f"{value.__module__}.{value.__qualname__}", value)
    return found


def parameters(value: Any) -> dict[str, inspect.Parameter]:
    """Those of a function or class, their annotations read."""
    raw = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    found = dict(inspect.signature(raw).parameters)
    found.pop("self", None)
    for name, one in found.items():
        if isinstance(one.annotation, str):
            try:
                found[name] = one.replace(annotation=eval(one.annotation, raw.__globals__))
            except NameError:  # imported only where types are checked
                found[name] = one.replace(annotation=Any)
    return found


def is_open(annotation: Any) -> bool:
    """Whether an annotation lets anything pass."""
    if annotation in (Any, MISSING, object) or isinstance(annotation, (typing.TypeVar, typing.ParamSpec)):
        return True
    both = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return both and any(map(is_open, typing.get_args(annotation)))


WRONG: dict[Any, tuple[Any, ...]] = {
    bool: ("yes", 2),
    int: ("3", None),
    float: ("0.5", None),
    str: (3, None),
    os.PathLike: (3,),
    jax.Array: ("x", [1.0], None),
    np.ndarray: ("x", [1.0], None),
    abc.Callable: (3, "x"),
    abc.Mapping: (3, "x"),
    abc.Iterable: (3,),
    **dict.fromkeys((dict, abc.Iterator, type), (3,)),
    **dict.fromkeys((tuple, list, abc.Sequence, abc.Collection), (3, "x")),
}


def wrong_values(annotation: Any) -> tuple[Any, ...]:
    """Values that an annotation does not ask for."""
    if annotation is PyTree:
        return ("x", {"a": {"kernel": np.ones(2), "odd": Nothing()}})
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return (Nothing(),)
    if origin is typing.Literal or annotation == abc.Sequence[str]:
        return (Nothing(), 3)
    plain = origin or annotation
    parts = ({"a": Nothing()},) if plain in (abc.Mapping, dict) and args and not is_open(args[1]) else ()
    return (Nothing(), *WRONG.get(plain, (3, "x")), *parts)


RIGHT: dict[Any, Any] = {
    bool: True,
    int: 3,
    float: 0.5,
    str: "a",
    jax.Array: np.ones((2, 2), np.float32),
    np.ndarray: np.ones((2, 2)),
    np.dtype: np.dtype(np.float32),
    abc.Callable: max,
    **{kind: {} for kind in (abc.Mapping, dict)},
    **dict.fromkeys((tuple, list, abc.Sequence, abc.Collection, abc.Iterable), ()),
}


def right_value(annotation: Any) -> Any:
    """Something that looks like what an annotation asks for: enough where another argument is what is wrong."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is PyTree or is_open(annotation):
        return {"a": {"kernel": jnp.ones((2, 2))}}
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in args else right_value(args[0])
    if origin is typing.Literal:
        return args[0]
    plain = origin or annotation
    if plain in RIGHT:
        return RIGHT[plain]
    if getattr(plain, "_is_protocol", False):
        return max
    if issubclass(plain, tuple):
        return tuple.__new__(plain)
    return object.__new__(type("Some", (plain,), {"__abstractmethods__": ()}))


def call_with(takes: dict[str, inspect.Parameter], place: str, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and keywords of a call with this in one place, and what looks right in the others that need it."""
    args: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, one in takes.items():
        value = given if name == place else right_value(one.annotation) if one.default is MISSING else one.default
        if one.kind == one.VAR_POSITIONAL:
            args += [value] if name == place else []
        elif one.kind == one.VAR_KEYWORD:
            keywords |= {"other": value} if name == place else {}
        elif one.kind == one.KEYWORD_ONLY:
            keywords |= {name: value} if name == place or one.default is MISSING else {}
        else:
            args.append(value)
    return tuple(args), keywords


def calls(value: Any) -> list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """Every wrong value in every place: (place, the value, positional arguments, keywords)."""
    takes = parameters(value)
    open_ = {place for place, one in takes.items() if is_open(one.annotation)}
    pairs = [(place, wrong) for place, one in takes.items() if place not in open_ for wrong in wrong_values(one.annotation)]
    return [(place, wrong, *call_with(takes, place, wrong)) for place, wrong in pairs]


def words_of(value: Any) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls with a word in each place that takes one of some words, and not this one."""
    takes = parameters(value)
    places = [place for place, one in takes.items() if typing.get_origin(one.annotation) is typing.Literal]
    return [(place, *call_with(takes, place, "no such word")) for place in places]
