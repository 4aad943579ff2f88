"""Number formats as the few integers that stand in a leaf's text."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from functools import cache
from typing import Any

from lepton_jax import formats
from lepton_jax.core.errors import ArtifactError
from lepton_jax.formats import Format, Uniform
from lepton_jax.leaves.qarray import QArray

_NAMES = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
_COMMON = ("channel_axis", "group_size", "group_axis", "scale_dtype")
# Axes count from either end; this many says that there is none.
NO_AXIS = 99


def is_plain(leaf: QArray) -> bool:
    """True for what version 1.1 of the file could hold: at most 8 bits, no groups, zero points of the scales' shape."""
    fmt = leaf.format
    if not isinstance(fmt, Uniform) or leaf.zero_point.shape != leaf.scale.shape:
        return False
    return fmt == Uniform(bits=fmt.bits, symmetric=fmt.symmetric, channel_axis=fmt.channel_axis) and fmt.bits <= 8


def numbers_of(fmt: Format) -> tuple[int, ...]:
    """Return the integers that say what a format is: its class, what all have, and its own fields in order.

    Example:
      >>> from lepton_jax.formats import NormalFloat4
      >>> numbers_of(NormalFloat4()), numbers_of(Uniform(bits=4, group_size=32))
      ((4, 99, 64, 99, 0), (0, 99, 32, 99, 0, 4, 1, 1))

    Raises:
      ArtifactError: for a format of another package.
    """
    if type(fmt) not in _classes().values():
        raise ArtifactError(f"arrays in the format {fmt} cannot be stored by this version; unpack them first")
    channel, group = (NO_AXIS if axis is None else axis for axis in (fmt.channel_axis, fmt.group_axis))
    head = (fmt.number, channel, fmt.group_size or 0, group, _NAMES.index(fmt.scale_dtype))
    own = (getattr(fmt, field) for field in _own_fields(type(fmt)))
    return (*head, *(_NAMES.index(value) if isinstance(value, str) else int(value) for value in own))


def format_of(numbers: tuple[int, ...]) -> Format:
    """Undo `numbers_of`.

    Raises:
      ArtifactError: if they say nothing known.
    """
    try:
        kind, channel, size, group, scale, *own = numbers
        if min(numbers[0], scale, *own, 0) < 0:
            raise ValueError("a negative number")
        cls = _classes()[kind]
        fields = _own_fields(cls)
        common: tuple[Any, ...] = (_axis(channel), size or None, _axis(group), _NAMES[scale])
        values = [
            _NAMES[value] if fields[name] is str else fields[name](value) for name, value in zip(fields, own, strict=True)
        ]
        return cls(**dict(zip(_COMMON, common)), **dict(zip(fields, values)))
    except (ValueError, TypeError, LookupError) as error:
        raise ArtifactError(f"{numbers} describe no number format") from error


@cache
def _classes() -> dict[int, type[Format]]:
    """The formats of this package by their numbers in files: every class of a module of `lepton_jax.formats` that has one."""
    modules = [importlib.import_module(f"{formats.__name__}.{m.name}") for m in pkgutil.iter_modules(formats.__path__)]
    classes = {x for module in modules for x in vars(module).values() if isinstance(x, type) and issubclass(x, Format)}
    return {cls.number: cls for cls in classes if "number" in vars(cls)}


def _axis(number: int) -> int | None:
    return None if number == NO_AXIS else number


def _own_fields(cls: type[Format]) -> dict[str, type]:
    """The fields that not all formats have, in their order, and their types."""
    own = [field for field in dataclasses.fields(cls) if field.name not in _COMMON]  # type: ignore[arg-type]
    return {field.name: str if isinstance(field.default, str) else int if field.name == "bits" else bool for field in own}
