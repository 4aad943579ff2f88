"""Codes and their scales inside a graph: the native form of what is quantized, weights and activations alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.packed import register_packed
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array, Path
from lepton_jax.formats.base import Format
from lepton_jax.leaves import convs, dots
from lepton_jax.leaves.form import Native, Operation


@register_packed("qvalue", "scale", "zero_point", "seen")
class Quantized(Native):
    """Codes and scales; where `is_linear`, ``(qvalue - zero_point) * scale``.

    The scale has the axes of `qvalue`, each of size 1, whole, or one for every `group` neighbours. `zero_point` is () if all
    zero. `seen` is what an operand was before it was rounded, or in the simulation: it has the derivative; or ().
    """

    qvalue: Array
    scale: Array
    zero_point: Any
    format: Format
    dtype: str
    seen: Any = ()
    path: Path = ""

    kind = "QArray"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.qvalue.shape

    @property
    def group(self) -> int:
        """How many neighbours share a scale; 0: there are no groups."""
        return self.format.group_size or 0

    @property
    def is_float8(self) -> bool:
        """Whether the codes are floating numbers of eight bits."""
        return jnp.issubdtype(self.qvalue.dtype, jnp.floating)

    @property
    def is_linear(self) -> bool:
        """Whether the codes are numbers of which the scale is a factor."""
        return self.is_float8 or self.format.is_integer

    @property
    def groups(self) -> tuple[int, ...]:
        """The axes along which neighbours share a scale, in groups."""
        return tuple(axis for axis, size in enumerate(self.scale.shape) if size not in (1, self.shape[axis]))

    def integers(self, dtype: Any) -> Array:
        """``qvalue - zero_point``, exact in `dtype` (of at least 9 bits' precision) for codes of eight bits."""
        if isinstance(self.zero_point, tuple):
            return self.qvalue.astype(dtype)
        return (self.qvalue.astype(jnp.int32) - self.expanded(self.zero_point)).astype(dtype)

    def expanded(self, part: Array) -> Array:
        """A scale or zero point, repeated over its groups."""
        for axis, (size, length) in enumerate(zip(part.shape, self.shape)):
            if size not in (1, length):
                part = self.expanded_along(part, axis)
        return part

    def expanded_along(self, part: Array, axis: int) -> Array:
        """A scale or zero point, repeated over its groups along one axis."""
        return jax.lax.slice_in_dim(_repeated(part, self.group, axis), 0, self.shape[axis], axis=axis)

    def dense(self) -> Array:
        zero = jnp.int32(0) if isinstance(self.zero_point, tuple) else self.expanded(self.zero_point)
        out = self.format.from_codes(self.qvalue, self.expanded(self.scale), zero).astype(self.dtype)
        return out if isinstance(self.seen, tuple) else straight_through(self.seen, out)

    def operand(self) -> Array:
        return self.dense()

    def mapped(self, change: Callable[[Array], Array]) -> Quantized:
        """The same with `change` applied to codes, scale and zero point alike."""
        zero, seen = (part if isinstance(part, tuple) else change(part) for part in (self.zero_point, self.seen))
        return replace(self, qvalue=change(self.qvalue), scale=change(self.scale), zero_point=zero, seen=seen)

    def layers(self, length: int) -> Quantized:
        return self.mapped(lambda part: layers_of(part, length, self.group))

    def rows(self, index: Array) -> Array:
        return self.mapped(lambda part: rows_of(part, index, self.shape[0], self.group)).dense()

    def dot(self, lhs: Any, rhs: Any, params: Mapping[str, Any]) -> Array | None:
        return dots.dot(lhs, rhs, params) if _are_codes_or_arrays(lhs, rhs) else None

    def conv(self, x: Any, kernel: Any, params: Mapping[str, Any]) -> Array | None:
        return convs.conv(x, kernel, params) if _are_codes_or_arrays(x, kernel) else None

    def moved(self, operation: Operation) -> Quantized | None:
        params, new = operation.params, operation.shape
        if operation.primitive == "transpose":
            return self.mapped(lambda part: jnp.transpose(part, params["permutation"]))
        if operation.primitive == "slice":
            return self._sliced(params["start_indices"], params["limit_indices"], params["strides"])
        runs = _runs(self.shape, new) if math.prod(new) == math.prod(self.shape) else None
        return None if runs is None else self.mapped(lambda part: self._reshaped(part, runs))

    def _sliced(self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None) -> Quantized:
        cut = [axis for axis, size in enumerate(self.shape) if (start[axis], limit[axis]) != (0, size) or strides]

        def change(part: Array) -> Array:
            for axis in cut:
                if part.shape[axis] not in (1, self.shape[axis]):
                    part = self.expanded_along(part, axis)
                if part.shape[axis] != 1:
                    step = 1 if strides is None else strides[axis]
                    part = jax.lax.slice_in_dim(part, start[axis], limit[axis], step, axis)
            return part

        return self.mapped(change)

    def _reshaped(self, part: Array, runs: Sequence[Run]) -> Array:
        """A scale, reshaped with its codes: repeated only along the axes that merge or part and along which it differs."""
        shape: list[int] = []
        for axes, lengths in runs:
            own = [part.shape[axis] for axis in axes]
            kept = [length for length in lengths if length != 1]
            if all(size == 1 for size in own):
                shape += [1] * len(lengths)
            elif kept == [self.shape[axis] for axis in axes if self.shape[axis] != 1] and len(kept) == 1:
                size = max(own)
                shape += [size if length != 1 else 1 for length in lengths]
            else:
                for axis in axes:
                    if part.shape[axis] not in (1, self.shape[axis]):
                        part = self.expanded_along(part, axis)
                whole = [self.shape[axis] if axis in axes else size for axis, size in enumerate(part.shape)]
                part = jnp.broadcast_to(part, whole)
                shape += lengths
        return part.reshape(shape)


Run = tuple[tuple[int, ...], tuple[int, ...]]
"""(axes before, lengths after) of the same elements in the same order."""


def _runs(old: Sequence[int], new: Sequence[int]) -> list[Run] | None:
    """Cut a reshape into the smallest pieces that are reshapes themselves; None for arrays without elements."""
    if 0 in (*old, *new):
        return None
    runs: list[Run] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, begin, left, right = i, j, 1, 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((tuple(range(first, i)), tuple(new[begin:j])))
    return runs


def _are_codes_or_arrays(*values: Any) -> bool:
    return all(isinstance(value, Quantized) or not isinstance(value, Native) for value in values)


def _repeated(part: Array, times: int, axis: int) -> Array:
    wide = jnp.broadcast_to(jnp.expand_dims(part, axis + 1), (*part.shape[: axis + 1], times, *part.shape[axis + 1 :]))
    return wide.reshape(*part.shape[:axis], -1, *part.shape[axis + 1 :])


def layers_of(part: Array, length: int, group: int) -> Array:
    """A scale with one for each layer, where they share one, or groups of them do."""
    if part.shape[0] == 1:
        return jnp.broadcast_to(part, (length, *part.shape[1:]))
    return part if part.shape[0] == length else _repeated(part, group, 0)[:length]


def rows_of(part: Array, index: Array, length: int, group: int) -> Array:
    """Codes or scales of some indices of the first axis."""
    if part.shape[0] == 1 and length != 1:
        return part  # a scale of all rows
    place = index if part.shape[0] == length else index // group
    return jnp.take(part, place, axis=0, mode="clip")
