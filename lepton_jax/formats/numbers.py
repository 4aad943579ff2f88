"""A number format as the few integers that say in a file what it is: its kind, what all formats have, and its own fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lepton_jax.core.errors import ArtifactError
from lepton_jax.formats.base import Format
from lepton_jax.formats.layout import ChannelAxis
from lepton_jax.formats.uniform import Uniform

NO_AXIS = 99
"""Axes count from either end; this many says that there is none."""
_SEVERAL, _AXES = 100, 64
"""From here on a number is several axes, as digits to the base of 64, each 32 and the axis; the lowest is the last."""
# Numbers in files: append only.
_DTYPES = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
_COMMON = ("channel_axis", "group_size", "group_axis", "scale_dtype")


def numbers_of(fmt: Format) -> tuple[int, ...]:
    """Return the integers that say what a format is.

    Example:
      >>> from lepton_jax.formats import NormalFloat4, Uniform
      >>> numbers_of(NormalFloat4()), numbers_of(Uniform(bits=4, group_size=32))
      ((4, 99, 64, 99, 0), (0, 99, 32, 99, 0, 4, 1, 1, 0))
      >>> numbers_of(Uniform(bits=4, narrow_range=True))  # as before version 1.4 of the file, which had no other range
      (0, 99, 0, 99, 0, 4, 1, 1)

    Raises:
      ArtifactError: for a format that has no number.
    """
    number = vars(type(fmt)).get("number")
    if number is None:
        raise ArtifactError(f"arrays in the format {fmt} cannot be stored by this version; unpack them first")
    channel, group = (_number(axis) for axis in (fmt.channel_axis, fmt.group_axis))
    own = (getattr(fmt, field) for field in _own_fields(type(fmt)))
    numbers = [_DTYPES.index(value) if isinstance(value, str) else int(value) for value in own]
    if isinstance(fmt, Uniform) and numbers[-1] == _narrow(numbers[:-1]):
        del numbers[-1]  # what versions before 1.4 had, too, is written as they wrote it
    return (number, channel, fmt.group_size or 0, group, _DTYPES.index(fmt.scale_dtype), *numbers)


def format_of(numbers: tuple[int, ...]) -> Format:
    """Undo `numbers_of`.

    Raises:
      ArtifactError: if they say nothing known.
    """
    try:
        number, channel, size, group, scale, *own = numbers
        if min(scale, *own, 0) < 0:
            raise ValueError("a negative number")
        [cls] = [kind for kind in Format.__subclasses__() if vars(kind).get("number") == number]
        fields = _own_fields(cls)
        if cls is Uniform and len(own) == len(fields) - 1:
            own = [*own, _narrow(own)]
        common: tuple[Any, ...] = (_axes(channel), size or None, _axis(group), _DTYPES[scale])
        values = [
            _DTYPES[value] if fields[name] is str else fields[name](value) for name, value in zip(fields, own, strict=True)
        ]
        return cls(**dict(zip(_COMMON, common)), **dict(zip(fields, values)))
    except (ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"{numbers} describe no number format") from error


def _narrow(own: Sequence[int]) -> int:
    """Whether a `Uniform` without a number for its range is narrow: that of versions before 1.4 was if signed and symmetric."""
    _, symmetric, signed = own
    return int(symmetric and signed)


def _number(axis: ChannelAxis) -> int:
    if isinstance(axis, tuple):
        return _SEVERAL + sum((one + _AXES // 2) * _AXES**place for place, one in enumerate(reversed(axis)))
    return NO_AXIS if axis is None else -1 if axis == "out" else axis


def _axes(number: int) -> int | tuple[int, ...] | None:
    digits: list[int] = []
    rest = number - _SEVERAL
    while rest > 0 and len(digits) < _AXES:
        rest, digit = divmod(rest, _AXES)
        digits.append(digit - _AXES // 2)
    return tuple(reversed(digits)) if number >= _SEVERAL else _axis(number)


def _axis(number: int) -> int | None:
    return None if number == NO_AXIS else number


def _own_fields(cls: type[Format]) -> dict[str, type]:
    """The fields that not all formats have, in their order, and their types."""
    own = [field for field in dataclasses.fields(cls) if field.name not in _COMMON]  # type: ignore[arg-type]
    return {field.name: str if isinstance(field.default, str) else int if field.name == "bits" else bool for field in own}
