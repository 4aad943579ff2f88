"""Number formats as the few integers that stand in a leaf's text."""

from __future__ import annotations

import dataclasses
from typing import Any

from lepton_jax.core.errors import ArtifactError
from lepton_jax.formats import MX, Binary, Float8, Format, NormalFloat4, Ternary, Uniform
from lepton_jax.leaves.qarray import QArray

# Numbers in files: append only.
_FORMATS: tuple[type[Format], ...] = (Uniform, Binary, Ternary, Float8, NormalFloat4, MX)
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
      >>> numbers_of(NormalFloat4()), numbers_of(Uniform(bits=4, group_size=32))
      ((4, 99, 64, 99, 0), (0, 99, 32, 99, 0, 4, 1, 1))

    Raises:
      ArtifactError: for a format of another package.
    """
    if type(fmt) not in _FORMATS:
        raise ArtifactError(f"arrays in the format {fmt} cannot be stored by this version; unpack them first")
    channel, group = (NO_AXIS if axis is None else axis for axis in (fmt.channel_axis, fmt.group_axis))
    head = (_FORMATS.index(type(fmt)), channel, fmt.group_size or 0, group, _NAMES.index(fmt.scale_dtype))
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
        cls = _FORMATS[kind]
        fields = _own_fields(cls)
        common: tuple[Any, ...] = (_axis(channel), size or None, _axis(group), _NAMES[scale])
        values = [
            _NAMES[value] if fields[name] is str else fields[name](value) for name, value in zip(fields, own, strict=True)
        ]
        return cls(**dict(zip(_COMMON, common)), **dict(zip(fields, values)))
    except (ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"{numbers} describe no number format") from error


def quiet_code(fmt: Format) -> int:
    """Return the stored code that most often means zero; a number that is no code where there is none."""
    if isinstance(fmt, Uniform):
        return min(max(-fmt.q_range[0], 0), 2**fmt.bits - 1)
    if isinstance(fmt, NormalFloat4):
        return fmt.table.index(0.0)
    return 2 if isinstance(fmt, Binary) else 1 if isinstance(fmt, Ternary) else 0


def _axis(number: int) -> int | None:
    return None if number == NO_AXIS else number


def _own_fields(cls: type[Format]) -> dict[str, type]:
    """The fields that not all formats have, in their order, and their types."""
    own = [field for field in dataclasses.fields(cls) if field.name not in _COMMON]  # type: ignore[arg-type]
    return {field.name: str if isinstance(field.default, str) else int if field.name == "bits" else bool for field in own}
