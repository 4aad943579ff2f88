"""Dots of codes: of integers accumulated in int32, of eight-bit floats, of either against floats."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lepton_jax.core.typing import Array
from lepton_jax.leaves.form import Native

if TYPE_CHECKING:  # which is built on this
    from lepton_jax.leaves.quantized import Quantized

Numbers = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
"""((contracted axes of each side), (batch axes of each side))."""

_VECTOR = 32
"""XLA's own dot of int8 is fast for features that are a multiple of this."""
_SMALLEST_GROUP = 64
"""A dot of fewer codes than this costs more than it saves: each group's result is as large as the whole one's."""


def dot(lhs: Any, rhs: Any, params: Mapping[str, Any]) -> Array:
    """Return a `dot_general` of `Quantized` operands, or of one and an array.

    * Codes of eight bits on both sides: integers are multiplied as int8 and summed in int32, floats in float32; the scales
      are applied to the result, to that of each group where they run along a summed axis. Zero points go into correction
      terms: ``sum (a - p)(b - q) = sum a b - p sum b - q sum a + n p q``.
    * Codes against floats: the codes are cast, exactly, and scaled before or after, whichever is smaller.
    * Anything else is decoded here, where it is used.

    The result's derivative is that of the dot of what the codes stand for, with respect to what the operands were in the
    simulation (`Quantized.seen`).
    """
    if is_codes(lhs) and is_codes(rhs):
        numbers = params["dimension_numbers"]
        if _coded_shape(lhs, rhs, numbers):
            return differentiated(partial(_coded, numbers=numbers), partial(_float_dot, params=params), lhs, rhs)
    elif is_codes(lhs) or is_codes(rhs):
        out = _mixed(lhs, rhs, params)
        if out is not None:
            return out
    return _float_dot(decoded(lhs), decoded(rhs), params)


def differentiated(
    coded: Callable[[Quantized, Quantized], Array], plain: Callable[[Array, Array], Array], lhs: Quantized, rhs: Quantized
) -> Array:
    """Return ``coded(lhs, rhs)``, with the derivative of a product of `seen`, at what the codes stand for.

    ``plain(d seen_l, (a - p) s_a) + plain((b - q) s_b, d seen_r)``: what `seen` is itself is never computed for it.

    Args:
      coded: the product of codes.
      plain: the product of arrays.
      lhs: codes; `seen` is () if there is no derivative.
      rhs: likewise.
    """
    if not differentiable(lhs, rhs):
        return coded(lhs, rhs)
    bare = [replace(side, seen=()) for side in (lhs, rhs)]

    @jax.custom_jvp
    def product(seen: tuple[Any, Any], sides: list[Quantized]) -> Array:
        return coded(*sides)

    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (_, (left, right)), ((from_left, from_right), _) = primals, tangents
        out, parts = product(*primals), []
        if not isinstance(from_left, tuple | SymbolicZero):
            parts.append(plain(from_left, right.dense()))
        if not isinstance(from_right, tuple | SymbolicZero):
            parts.append(plain(left.dense(), from_right))
        parts = [part.astype(out.dtype) for part in parts]
        return out, functools.reduce(jnp.add, parts) if parts else jnp.zeros_like(out)

    product.defjvp(rule, symbolic_zeros=True)
    return product((lhs.seen, rhs.seen), bare)


def is_codes(value: Any) -> TypeGuard[Quantized]:
    """Whether an operand, codes or an array, is codes."""
    return isinstance(value, Native)


def decoded(value: Any) -> Any:
    """The array of a quantized value; anything else as it is."""
    return value.dense() if is_codes(value) else value


def differentiable(*values: Quantized) -> bool:
    """Whether any has a derivative of its own."""
    return any(not isinstance(value.seen, tuple) for value in values)


def alike(lhs: Quantized, rhs: Quantized) -> bool:
    """Whether codes can be multiplied with each other as they are: integers of eight bits, or floats."""
    narrow = all(side.qvalue.dtype.itemsize == 1 and side.is_linear for side in (lhs, rhs))
    return narrow and lhs.is_float8 == rhs.is_float8


def castable(value: Quantized, dtype: Any) -> bool:
    """Whether codes are numbers that a floating dtype has exactly, and nothing more is known of them."""
    exact = value.qvalue.dtype.itemsize == 1 or jnp.finfo(dtype).nmant > 16
    return value.is_linear and exact and not differentiable(value)


def int8(value: Quantized) -> tuple[Array, Array | None]:
    """The codes as int8, and the zero point that belongs to them (int32), or None.

    Codes without a sign are moved down by 128, so that both sides of a dot have the one dtype that engines are fast in.
    """
    zero = None if isinstance(value.zero_point, tuple) else value.zero_point.astype(jnp.int32)
    if value.qvalue.dtype != jnp.uint8:
        return value.qvalue, zero
    if value.format.bits < 8:
        return value.qvalue.astype(jnp.int8), zero
    moved = jax.lax.bitcast_convert_type(value.qvalue ^ jnp.uint8(128), jnp.int8)
    return moved, jnp.full((1,) * moved.ndim, -128, jnp.int32) if zero is None else zero - 128


def outer(lhs: Array, rhs: Array, numbers: Numbers) -> Array:
    """The products of two factors with kept axes, of size 1 where summed over, in the layout of a dot's result."""
    (summed_l, summed_r), (batch_l, batch_r) = numbers
    free_l = [axis for axis in range(lhs.ndim) if axis not in (*summed_l, *batch_l)]
    free_r = [axis for axis in range(rhs.ndim) if axis not in (*summed_r, *batch_r)]
    left = jnp.transpose(lhs, (*batch_l, *free_l, *summed_l))
    right = jnp.transpose(rhs, (*batch_r, *free_r, *summed_r))
    n_batch, n_free = len(batch_l), len(free_l)
    left = left.reshape(*left.shape[: n_batch + n_free], *(1 for _ in free_r))
    right = right.reshape(*right.shape[:n_batch], *(1 for _ in free_l), *right.shape[n_batch : n_batch + len(free_r)])
    return left * right


def _float_dot(lhs: Array, rhs: Array, params: Mapping[str, Any]) -> Array:
    wide = {"precision": params["precision"], "preferred_element_type": params["preferred_element_type"]}
    return jax.lax.dot_general(lhs, rhs, params["dimension_numbers"], **wide)


def _coded_shape(lhs: Quantized, rhs: Quantized, numbers: Numbers) -> bool:
    """Whether the kinds of codes and the places of their scales allow a dot of codes with codes."""
    return alike(lhs, rhs) and _group(lhs, rhs, numbers) is not None


def _coded(lhs: Quantized, rhs: Quantized, numbers: Numbers) -> Array:
    """The scaled dot of codes with codes."""
    lhs, rhs, inner = _in_groups(lhs, rhs, numbers)
    scales = outer(lhs.scale.astype(jnp.float32), rhs.scale.astype(jnp.float32), inner)
    if lhs.is_float8:
        out = jax.lax.dot_general(lhs.qvalue, rhs.qvalue, inner, preferred_element_type=jnp.float32)
    else:
        out = _integers(lhs, rhs, inner).astype(jnp.float32)
    return out * scales if inner is numbers else jnp.sum(out * scales, axis=0)


def _integers(lhs: Quantized, rhs: Quantized, numbers: Numbers) -> Array:
    """``sum (a - p)(b - q)`` in int32, exact below ``2**31``."""
    (a, p), (b, q) = int8(lhs), int8(rhs)
    out = _product(a, b, numbers)
    (summed_a, summed_b), _ = numbers
    if p is not None:
        out = out - outer(p, sums_along(b, summed_b), numbers)
    if q is not None:
        out = out - outer(sums_along(a, summed_a), q, numbers)
    if p is not None and q is not None:
        out = out + math.prod(a.shape[axis] for axis in summed_a) * outer(p, q, numbers)
    return out


def _product(a: Array, b: Array, numbers: Numbers) -> Array:
    """The dot of int8 with int8 in int32. XLA on CPU has fast loops for two rows, none for one, which is filled up there."""
    wide = partial(jax.lax.dot_general, dimension_numbers=numbers, preferred_element_type=jnp.int32)
    (summed, summed_b), batch = numbers
    free = [axis for axis in range(a.ndim) if axis not in summed]
    sizes = [size for axis, size in enumerate(b.shape) if axis not in summed_b]
    vectors = all(isinstance(size, int) for size in sizes) and math.prod(sizes) > 0 and math.prod(sizes) % _VECTOR == 0
    if batch != ((), ()) or not free or any(a.shape[axis] != 1 for axis in free) or not vectors:
        return wide(a, b)

    def of_two_rows(a: Array, b: Array) -> Array:
        rows = jax.lax.pad(a, jnp.int8(0), [(0, int(axis == free[0]), 0) for axis in range(a.ndim)])
        return jax.lax.slice_in_dim(wide(rows, b), 0, 1, axis=0)

    return jax.lax.platform_dependent(a, b, cpu=of_two_rows, default=wide)


def sums_along(codes: Array, axes: Sequence[int]) -> Array:
    """The sums of int8 along axes, which stay with size 1, in int32; in float32, which is faster, where that is exact.

    Args:
      codes: int8.
      axes: that are summed.
    """
    exact = math.prod(codes.shape[axis] for axis in axes) <= 2**24 // 128
    wide = jnp.float32 if exact else jnp.int32
    return jnp.sum(codes, tuple(axes), keepdims=True, dtype=wide).astype(jnp.int32)


def _group(lhs: Quantized, rhs: Quantized, numbers: Numbers) -> tuple[int, int, int] | tuple[()] | None:
    """(an axis of each side, size of groups) of the summed axes in which scales differ; () if there is none.

    None if there are several, groups that are not the same on both sides, or groups too small to be worth it.
    """
    pairs = [(a, b) for a, b in zip(*numbers[0]) if lhs.scale.shape[a] != 1 or rhs.scale.shape[b] != 1]
    if not pairs:
        return ()
    [(a, b), *more] = pairs
    scaled = [(side, axis) for side, axis in ((lhs, a), (rhs, b)) if side.scale.shape[axis] != 1]
    sizes = {side.group for side, axis in scaled}
    whole = any(side.scale.shape[axis] == side.shape[axis] for side, axis in scaled)
    if more or whole or len(sizes) > 1 or min(sizes) < _SMALLEST_GROUP:
        return None
    [size] = sizes
    symmetric = isinstance(lhs.zero_point, tuple) and isinstance(rhs.zero_point, tuple)
    # A short group is filled up with zeros, which codes with a zero point of their own have no one code for.
    return (a, b, size) if symmetric or lhs.shape[a] % size == 0 else None


def _in_groups(lhs: Quantized, rhs: Quantized, numbers: Numbers) -> tuple[Quantized, Quantized, Numbers]:
    """The operands with the summed axis in which scales differ split into groups, which are the first batch axis."""
    found = _group(lhs, rhs, numbers)
    lhs, rhs = (free_expanded(side, summed) for side, summed in zip((lhs, rhs), numbers[0]))
    if not found:
        return lhs, rhs, numbers
    parts = []
    for side, own, axis in ((lhs, 0, found[0]), (rhs, 1, found[1])):
        summed, batch = (tuple(i + (i > axis) for i in axes[own]) for axes in numbers)
        summed = tuple(axis + 1 if i == axis else i for i in summed)
        parts.append((_split(side, axis, found[2]), summed, (axis, *batch)))
    (left, summed_l, batch_l), (right, summed_r, batch_r) = parts
    return left, right, ((summed_l, summed_r), (batch_l, batch_r))


def _split(side: Quantized, axis: int, size: int) -> Quantized:
    """An axis as two, groups and their members; the last group filled up with zeros."""
    groups = -(-side.shape[axis] // size)
    fill = [(0, groups * size - length if i == axis else 0) for i, length in enumerate(side.shape)]
    codes = jnp.pad(side.qvalue, fill) if fill[axis][1] else side.qvalue
    shape = side.shape
    zero = side.zero_point if isinstance(side.zero_point, tuple) else jnp.expand_dims(side.zero_point, axis + 1)
    codes = codes.reshape(*shape[:axis], groups, size, *shape[axis + 1 :])
    return replace(side, qvalue=codes, scale=jnp.expand_dims(side.scale, axis + 1), zero_point=zero, seen=())


def free_expanded(value: Quantized, summed: Sequence[int]) -> Quantized:
    """The same with the scales of groups along axes that are not summed over repeated."""
    if all(axis in summed for axis in value.groups):
        return value

    def expanded(part: Array) -> Array:
        for axis in value.groups:
            if axis not in summed and part.shape[axis] != 1:
                part = value.expanded_along(part, axis)
        return part

    zero = value.zero_point if isinstance(value.zero_point, tuple) else expanded(value.zero_point)
    return replace(value, scale=expanded(value.scale), zero_point=zero)


def _mixed(lhs: Any, rhs: Any, params: Mapping[str, Any]) -> Array | None:
    """A dot of codes, cast, with floats; the scales are applied to the result, or to the floats. None if neither can be."""
    numbers = params["dimension_numbers"]
    own = 0 if is_codes(lhs) else 1
    value, other = (lhs, rhs) if own == 0 else (rhs, lhs)
    if not castable(value, other.dtype):
        return None
    value = free_expanded(value, numbers[0][own])
    if any(value.scale.shape[axis] != 1 for axis in numbers[0][own]):
        if any(size != 1 for axis, size in enumerate(value.scale.shape) if axis not in numbers[0][own]) or value.groups:
            return None
        other = other * _across(value.scale, numbers[0][own], numbers[0][1 - own], other.ndim).astype(other.dtype)
        value = replace(value, scale=jnp.ones((1,) * value.scale.ndim, value.scale.dtype))
    codes, ones = value.integers(other.dtype), jnp.ones((1,) * other.ndim, jnp.float32)
    scale = value.scale.astype(jnp.float32)
    sides, factors = ((codes, other), (scale, ones)) if own == 0 else ((other, codes), (ones, scale))
    return _float_dot(sides[0], sides[1], params) * outer(factors[0], factors[1], numbers)


def _across(scale: Array, axes: Sequence[int], other_axes: Sequence[int], ndim: int) -> Array:
    """A scale along summed axes alone, along those of the other side: ``x @ (s q) = (x s) @ q``."""
    ordered = sorted(zip(other_axes, axes))
    shape = [1] * ndim
    for axis, own in ordered:
        shape[axis] = scale.shape[own]
    rest = [axis for axis in range(scale.ndim) if axis not in axes]
    return jnp.transpose(scale, (*rest, *(own for _, own in ordered))).reshape(shape)
