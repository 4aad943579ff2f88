"""Sequences of values, which are tuples while a graph is evaluated, and what may be there or not."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.host import integers, is_host, lengths, namespace, on_device
from lepton_jax.interchange.onnx.site import Rule, Site


def _place(sequence: tuple[Any, ...], place: Any, end: int) -> int:
    [at] = [end] if place is None else integers(place)
    if not -len(sequence) <= at <= end:
        raise ValueError(f"place {at} in a sequence of {len(sequence)}")
    return at + len(sequence) if at < 0 else at


def insert(site: Site, sequence: tuple[Any, ...], value: Any, place: Any = None) -> Any:
    """The sequence with one value more."""
    at = _place(sequence, place, len(sequence))
    return [(*sequence[:at], value, *sequence[at:])]


def erase(site: Site, sequence: tuple[Any, ...], place: Any = None) -> Any:
    """The sequence with one value less."""
    at = _place(sequence, place, len(sequence) - 1)
    return [(*sequence[:at], *sequence[at + 1 :])]


def at(site: Site, sequence: tuple[Any, ...], place: Any) -> Any:
    """One of its values."""
    return sequence[_place(sequence, place, len(sequence) - 1)]


def joined(site: Site, sequence: tuple[Any, ...]) -> Any:
    """All of it along an axis, a new one if that is asked for."""
    names, values = namespace(*sequence), list(sequence)
    values = values if names is np else [on_device(one) for one in values]
    return (names.stack if site.get("new_axis", 0) else names.concatenate)(values, site.get("axis"))


def parted(site: Site, x: Any, parts: Any = None) -> Any:
    """A value cut along an axis."""
    axis = site.get("axis", 0)
    n = x.shape[axis]
    if parts is None:
        sizes = [1] * n
    elif np.ndim(parts) == 0:
        by = integers(parts)[0]
        sizes = [min(by, n - i) for i in range(0, n, by)]
    else:
        sizes = integers(parts)
    names = np if is_host(x) else jnp
    pieces = names.split(x, np.cumsum(sizes)[:-1].tolist(), axis)
    if parts is None and not site.get("keepdims", 1):
        pieces = [names.squeeze(piece, axis) for piece in pieces]
    return [tuple(pieces)]


def has_element(site: Site, x: Any = None) -> Any:
    """Whether something is there."""
    return np.asarray(x is not None)


RULES: dict[str, Rule] = {
    "ConcatFromSequence": Rule(joined, both=True),
    "Optional": Rule(lambda site, x=None: [x] if isinstance(x, tuple) else x, both=True),
    "OptionalGetElement": Rule(lambda site, x: [x] if isinstance(x, tuple) else x, both=True),
    "OptionalHasElement": Rule(has_element, both=True),
    "SequenceAt": Rule(at, host=(1,), both=True),
    "SequenceConstruct": Rule(lambda site, *values: [tuple(values)], both=True),
    "SequenceEmpty": Rule(lambda site: [()], both=True),
    "SequenceErase": Rule(erase, host=(1,), both=True),
    "SequenceInsert": Rule(insert, host=(2,), both=True),
    "SequenceLength": Rule(lambda site, sequence: lengths((len(sequence),))[0], both=True),
    "SplitToSequence": Rule(parted, host=(1,), both=True),
}
