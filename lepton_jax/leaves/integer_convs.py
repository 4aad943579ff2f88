"""Convolutions of int8 with int8, summed in int32, in the form that is fastest on CPU: all of them give the same integers.

XLA on CPU has fast loops for such a convolution if channels come in fours and there are enough of them on both sides
(`vectored`); else its loops are up to ten times slower than floats'. `folded` makes more channels of few: some neighbouring
outputs become the features of one, some neighbouring inputs its channels. `as_dots` multiplies patches instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from lepton_jax.core.typing import Array

_MOST_TAPS = 16
"""Patches are as many times the input as the kernel has elements in space."""
_FEW_OUTPUTS = 16
"""For so few positions of the result a dot of patches is fastest: nearly all of its time is the kernel's."""
_FEW_CHANNELS = 4
_FOLDS = (1, 2, 4, 8)
Form = Callable[[Array, Array, Mapping[str, Any]], Array]
"""Computes a convolution from inputs, kernel and parameters."""


def integers(x: Array, kernel: Array, params: Mapping[str, Any], filling: Array | None) -> Array:
    """Return the convolution of int8 with int8 in int32, on CPU in the form that is fastest for its shape.

    Args:
      x: the inputs.
      kernel: the weights.
      params: of the `conv_general_dilated`, whose `preferred_element_type` is int32.
      filling: int8, what stands around and between the inputs; None: 0.
    """
    form = _form(x, kernel, params)
    if form is None and filling is None:
        return bound(x, kernel, params)

    def filled_in(form: Form, x: Array, kernel: Array, *filling: Array) -> Array:
        if not filling:
            return form(x, kernel, params)
        return form(_filled(x, filling[0], params), kernel, _unfilled(params))

    def apart(*operands: Array) -> Array:
        # Inlined, what the operands are computed from would be computed in other shapes than its own, or once for every tap.
        with set_xla_metadata(inlineable="false"):
            return jax.jit(partial(filled_in, form or bound))(*operands)

    # The compiler takes one of them, by the platform that it compiles for.
    operands = (x, kernel) if filling is None else (x, kernel, filling)
    return jax.lax.platform_dependent(*operands, cpu=apart, default=partial(filled_in, bound))


def _filled(x: Array, filling: Array, params: Mapping[str, Any]) -> Array:
    config = [(0, 0, 0)] * x.ndim
    for axis, (low, high), step in zip(params["dimension_numbers"].lhs_spec[2:], params["padding"], params["lhs_dilation"]):
        config[axis] = (low, high, step - 1)
    return jax.lax.pad(x, filling, config)


def _unfilled(params: Mapping[str, Any]) -> Mapping[str, Any]:
    count = len(params["padding"])
    return {**params, "padding": ((0, 0),) * count, "lhs_dilation": (1,) * count}


def bound(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated_p.bind(x, kernel, **params)


def vectored(channels: int, features: int) -> bool:
    """Whether XLA on CPU has fast loops for a convolution of int8 of so many channels and features."""
    return channels % 4 == 0 and (features > 16 or (features > 8 and channels > 16) or channels >= 32)


def _form(x: Array, kernel: Array, params: Mapping[str, Any]) -> Form | None:
    """The form on CPU; None for XLA's own."""
    numbers = params["dimension_numbers"]
    grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
    size, sizes = ([a.shape[axis] for axis in s[2:]] for a, s in ((x, numbers.lhs_spec), (kernel, numbers.rhs_spec)))
    known = all(isinstance(n, int) for n in size)
    if not known or grouped or not size or 0 in (*x.shape, *kernel.shape) or any(n != 1 for n in params["lhs_dilation"]):
        return None
    taps, outputs = math.prod(sizes), math.prod(_outputs(size, sizes, params))
    if taps == 1 or (taps <= _MOST_TAPS and 0 < outputs <= _FEW_OUTPUTS):
        return as_dots
    channels, features = kernel.shape[numbers.rhs_spec[1]], kernel.shape[numbers.rhs_spec[0]]
    if vectored(channels, features) or outputs <= 0:
        return None
    fold = _fold(channels, features, params["window_strides"])
    if fold is not None and all(n == 1 for n in params["rhs_dilation"]):
        return partial(folded, outputs=fold[0], rows=fold[1])
    return as_dots if taps <= _MOST_TAPS else None


def _outputs(size: Sequence[int], sizes: Sequence[int], params: Mapping[str, Any]) -> list[int]:
    """The lengths of the result in space."""
    options = zip(size, sizes, params["padding"], params["window_strides"], params["rhs_dilation"])
    return [(n + low + high - (k - 1) * wide - 1) // step + 1 for n, k, (low, high), step, wide in options]


def _fold(channels: int, features: int, strides: Sequence[int]) -> tuple[int, bool] | None:
    """(how many outputs are one's features, whether rows are folded by their stride too): the least with fast loops."""
    rows = strides[0] if len(strides) > 1 else 1
    if channels < _FEW_CHANNELS and rows > 1 and vectored(channels * strides[-1] * rows, features):
        return 1, True
    for outputs in _FOLDS:
        if vectored(channels * strides[-1] * outputs, features * outputs):
            return outputs, False
    return None


def folded(x: Array, kernel: Array, params: Mapping[str, Any], *, outputs: int, rows: bool) -> Array:
    """Return the convolution of which every `outputs` neighbours along the last axis in space are features of one.

    With q outputs, a stride s and a kernel of k elements: ``q s`` neighbouring inputs are channels of one, without a copy, and
    a kernel of ``ceil(((q - 1) s + k) / (q s))`` of them holds q shifted copies of the given one, among zeros.

    Args:
      x: the inputs.
      kernel: the weights, not dilated.
      params: of the convolution.
      outputs: how many are one's features.
      rows: whether inputs along the first axis in space become channels too, as many as its stride.
    """
    numbers, x, kernel = params["dimension_numbers"], *in_order(x, kernel, params)
    (*_, stride), (*lead, size, channels, features) = params["window_strides"], kernel.shape
    count = (x.shape[-2] - size) // stride + 1
    group, groups = outputs * stride, -(-count // outputs)
    wide = -(-((outputs - 1) * stride + size) // group)
    x = _sized(x, -2, (groups + wide - 1) * group)
    x = x.reshape(*x.shape[:-2], groups + wide - 1, group * channels)
    plain = [(0, 0, 0)] * len(lead)
    places = [(i * stride, wide * group - size - i * stride, 0) for i in range(outputs)]
    copies = [jax.lax.pad(kernel, jnp.int8(0), [*plain, place, (0, 0, 0), (0, 0, 0)]) for place in places]
    kernel = jnp.concatenate(copies, -1).reshape(*lead, wide, group * channels, outputs * features)
    steps = [*params["window_strides"][:-1], 1]
    if rows:
        x, kernel = _rows_folded(x, kernel, steps[0])
        steps[0] = 1
    space = range(2, x.ndim)
    ordered = (0, x.ndim - 1, *range(1, x.ndim - 1))
    names = type(numbers)(ordered, (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)), ordered)
    options = {"dimension_numbers": names, "window_strides": tuple(steps), "padding": ((0, 0),) * len(space)}
    out = bound(x, kernel, {**params, **options})
    out = out.reshape(*out.shape[:-2], groups * outputs, features)
    return _reordered(jax.lax.slice_in_dim(out, 0, count, axis=out.ndim - 2), numbers)


def _rows_folded(x: Array, kernel: Array, step: int) -> tuple[Array, Array]:
    """Inputs and kernel with `step` neighbours along the first axis in space as channels of one."""
    high = -(-kernel.shape[0] // step)
    kernel = _sized(kernel, 0, high * step)
    count = (x.shape[1] - 1) // step + 1
    x = _sized(x, 1, count * step)
    x = jnp.moveaxis(x.reshape(x.shape[0], count, step, *x.shape[2:]), 2, -2)
    kernel = jnp.moveaxis(kernel.reshape(high, step, *kernel.shape[1:]), 1, -3)
    x, kernel = x.reshape(*x.shape[:-2], -1), kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])
    return x, kernel


def _sized(x: Array, axis: int, length: int) -> Array:
    """The array cut or filled up with zeros at the end of an axis."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, length - x.shape[axis], 0)
    return jax.lax.pad(x, jnp.int8(0), config)


def in_order(x: Array, kernel: Array, params: Mapping[str, Any]) -> tuple[Array, Array]:
    """Inputs with examples first and channels last, filled in around; a kernel with channels and features last."""
    numbers = params["dimension_numbers"]
    x = jnp.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    return jax.lax.pad(x, jnp.int8(0), ((0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0))), kernel


def _reordered(out: Array, numbers: Any) -> Array:
    """A result with examples first and features last, in its own order."""
    order = np.argsort((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
    return jnp.transpose(out, tuple(int(axis) for axis in order))


def as_dots(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    """Return the convolution as one dot of patches, which hold all inputs that a result is of."""
    x, kernel = in_order(x, kernel, params)
    strides, dilations, sizes = params["window_strides"], params["rhs_dilation"], kernel.shape[:-2]
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations)]
    counts = [(length - span) // stride + 1 for length, span, stride in zip(x.shape[1:-1], spans, strides)]
    last = (((x.ndim - 1,), (0,)), ((), ()))

    def patch(tap: Sequence[int]) -> Array:
        start = [place * dilation for place, dilation in zip(tap, dilations)]
        stop = [first + (count - 1) * stride + 1 for first, count, stride in zip(start, counts, strides)]
        limits = (x.shape[0], *stop, x.shape[-1])
        return jax.lax.slice(x, (0, *start, 0), limits, (1, *strides, 1))

    patches = [patch(tap) for tap in np.ndindex(*sizes)]
    joined = jnp.concatenate(patches, axis=-1) if len(patches) > 1 else patches[0]
    weights = kernel.reshape(-1, kernel.shape[-1])
    return _reordered(jax.lax.dot_general(joined, weights, last, preferred_element_type=jnp.int32), params["dimension_numbers"])
