"""Dots and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter, Unsupported, array_of
from lepton_jax.deploy.to_onnx.rules.elementwise import Rule, dtype_of
from lepton_jax.deploy.to_onnx.rules.shapes import padded
from lepton_jax.deploy.to_onnx.tensors import Tensor, inverse
from lepton_jax.deploy.weights import Weight
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.form import Native
from lepton_jax.leaves.quantized import Quantized


def arranged(to: Exporter, value: Any, axes: Sequence[int], dtype: Any) -> str:
    """The name of a value with its axes in this order and every element there."""
    order = inverse(tuple(axes))
    if isinstance(value, Weight):  # of a convolution: outputs first
        return to.weight(value, axes, [value.shape[axis] for axis in axes], 0)  # type: ignore[attr-defined]
    value = to.opened(value) if isinstance(value, Native) else value
    value = value if isinstance(value, Tensor) and value.is_full else to.whole(value)
    if isinstance(value, Tensor):
        return to.physical(to.cast(value, dtype), order)
    return to.file.const(np.asarray(value).transpose(axes).astype(dtype))


def _work(to: Exporter, eqn: Equation, values: Sequence[Any]) -> np.dtype:
    out = dtype_of(eqn)
    if np.issubdtype(out, np.integer):
        return np.dtype(np.int32)
    return np.dtype(np.float64 if out == np.float64 else np.float16 if out == np.float16 else np.float32)


def _dot(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    (summed, batch) = eqn.params["dimension_numbers"]
    shapes = [aval.shape for aval in eqn.in_avals]
    free = [[a for a in range(len(s)) if a not in (*c, *b)] for s, c, b in zip(shapes, summed, batch)]
    if any(isinstance(value, Native) for value in values):
        from lepton_jax.deploy.to_onnx import packed

        if not isinstance(values[1], Quantized) or batch[0]:
            return None
        return packed.dot(to, eqn, values, free)
    work = _work(to, eqn, values)
    left = arranged(to, values[0], [*batch[0], *free[0], *summed[0]], work)
    right = arranged(to, values[1], [*batch[1], *summed[1], *free[1]], work)
    sizes = [[shapes[0][a] for a in axes] for axes in (batch[0], free[0], summed[0])]
    outer, rows, inner = sizes
    columns = [shapes[1][a] for a in free[1]]
    # A weight without batch axes meets rows as they are: no reshape stands between engines and what they fuse.
    flat_rows = len(rows) != 1 and (outer or len(columns) == 0 or len(rows) == 0)
    if flat_rows or len(inner) != 1:
        left = to.file.reshape(left, (*outer, *([math.prod(rows)] if flat_rows else rows), math.prod(inner)))
    if len(columns) != 1 or len(inner) != 1:
        right = to.file.reshape(right, (*outer, math.prod(inner), math.prod(columns)))
    name = to.file.op("MatMul", left, right)
    if flat_rows or len(columns) != 1:
        name = to.file.reshape(name, (*outer, *rows, *columns))
    out = dtype_of(eqn)
    return [to.result(eqn, name if work == out else to.file.cast(name, out))]


def biased(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """Write an addition; of a constant along the channels of a convolution or a product as its bias."""
    for x, other in (values, values[::-1]):
        bias = array_of(other)
        node = to.file.made.get(x.name) if isinstance(x, Tensor) else None
        if bias is None or node is None or len(node.input) != 2 or not x.is_full or dtype_of(eqn) != np.float32:
            continue
        place = {"Conv": 1, "ConvTranspose": 1, "MatMul": x.ndim - 1}.get(node.op_type)
        is_gemm = node.op_type == "MatMul" and x.ndim == 2 and to.is_weight(node.input[1])
        if place is None or (node.op_type == "MatMul" and not is_gemm) or bias.ndim != x.ndim:
            continue
        channel = x.order.index(place)
        if any(n != 1 for axis, n in enumerate(bias.shape) if axis != channel):
            continue
        vector = np.broadcast_to(bias.reshape(-1), (x.shape[channel],))
        # A new node: the old one is left out unless something else reads its result.
        from onnx import helper

        kept = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        kind = "Gemm" if is_gemm else node.op_type
        name = to.file.op(kind, *node.input, to.bias(vector, node), **kept)
        return [Tensor(name, x.shape, x.dtype, x.order)]
    return [to.elementwise("Add", values, dtype_of(eqn))]


def _conv(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise Unsupported("groups along the batch")
    x, kernel = values
    if isinstance(x, Native) or (isinstance(kernel, Native) and not isinstance(kernel, Quantized)):
        return None
    work = _work(to, eqn, values)
    ndim = len(eqn.in_avals[0].shape)
    if not isinstance(x, Tensor) or not x.is_full:
        x = to.whole(x)
    x = x if isinstance(x, Tensor) else Tensor(to.file.const(x), x.shape, x.dtype)
    x = to.cast(x, work)
    window: dict[str, Any] = {"strides": list(params["window_strides"]), "dilations": list(params["rhs_dilation"])}
    padding, spread = list(params["padding"]), params["lhs_dilation"]
    order = inverse(tuple(numbers.lhs_spec))
    array = None if isinstance(kernel, Native | Weight) else array_of(kernel)
    simple = params["feature_group_count"] == 1 and all(s == 1 for s in window["strides"]) and any(d != 1 for d in spread)
    if array is not None and simple and (pads := _transposed_pads(eqn, array)) is not None:
        # A convolution of what is spread apart is a transposed convolution, which skips the zeros.
        turned = np.flip(array.transpose(numbers.rhs_spec), tuple(range(2, ndim))).swapaxes(0, 1)
        given: dict[str, Any] = {"strides": list(spread), "dilations": window["dilations"], "pads": pads}
        name = to.file.op("ConvTranspose", to.physical(x, order), to.file.const(turned.astype(work)), **given)
    else:
        config = [(0, 0, 0)] * ndim
        for axis, (low, high), step in zip(numbers.lhs_spec[2:], padding, spread):
            config[axis] = (min(low, 0), min(high, 0), step - 1)
        if any(part != (0, 0, 0) for part in config):
            x = padded(to, x, config, to.file.const(np.zeros((), work)))
        pads = [max(side[end], 0) for end in (0, 1) for side in padding]
        name_of_kernel = arranged(to, kernel, numbers.rhs_spec, work)
        given = {"pads": pads, "group": params["feature_group_count"], **window}
        name = to.file.op("Conv", to.physical(x, order), name_of_kernel, **given)
    out = dtype_of(eqn)
    return [to.result(eqn, name if work == out else to.file.cast(name, out), order=inverse(tuple(numbers.out_spec)))]


def _transposed_pads(eqn: Equation, kernel: np.ndarray) -> list[int] | None:
    """The padding of a transposed convolution; None if it would be negative."""
    params = eqn.params
    sizes = [kernel.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    reach = [(size - 1) * step for size, step in zip(sizes, params["rhs_dilation"])]
    pads = [r - side[end] for end in (0, 1) for r, side in zip(reach, params["padding"])]
    return pads if min(pads) >= 0 else None


PRODUCTS: dict[str, Rule] = {"dot_general": _dot, "conv_general_dilated": _conv, "add": biased}
