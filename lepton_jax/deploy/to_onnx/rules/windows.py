"""Extremes and sums over windows: pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter, Unsupported
from lepton_jax.deploy.to_onnx.rules.elementwise import Rule, dtype_of
from lepton_jax.deploy.to_onnx.rules.shapes import padded
from lepton_jax.deploy.to_onnx.tensors import Tensor, inverse
from lepton_jax.graph.trace import Equation


def _window(kind: str) -> Rule:
    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        params = eqn.params
        x = values[0] if isinstance(values[0], Tensor) and values[0].is_full else to.whole(values[0])
        x = x if x.dtype in (np.float32, np.float64, np.float16) else to.cast(x, np.float32)
        if any(n != 1 for n in params["base_dilation"]):
            raise Unsupported("elements spread apart")
        edges = [(min(low, 0), min(high, 0), 0) for low, high in params["padding"]]
        if any(edge != (0, 0, 0) for edge in edges):
            x = padded(to, x, edges, to.file.const(np.zeros((), x.dtype)))
        pads = [(max(low, 0), max(high, 0)) for low, high in params["padding"]]
        size, stride, dilation = (params[f"window_{name}"] for name in ("dimensions", "strides", "dilation"))
        kept = [a for a in range(x.ndim) if size[a] == 1 and stride[a] == 1 and pads[a] == (0, 0)]
        moving = [a for a in range(x.ndim) if a not in kept]
        if not moving:
            return [to.cast(x, dtype_of(eqn))]
        if len(moving) > 3:
            raise Unsupported(f"windows along {len(moving)} axes")
        axes = (*kept, *moving)
        out_shape = eqn.out_avals[0].shape
        name = to.physical(x, inverse(axes))
        reshaped = len(kept) != 2
        if reshaped:  # a batch and a channel axis, as engines want them
            lead = (math.prod([x.shape[a] for a in kept]), 1) if kept else (1, 1)
            name = to.file.reshape(name, (*lead, *(x.shape[a] for a in moving)))
        given = {
            "kernel_shape": [size[a] for a in moving],
            "strides": [stride[a] for a in moving],
            "dilations": [dilation[a] for a in moving],
            "pads": [pads[a][end] for end in (0, 1) for a in moving],
        }
        name = _pooled(to, kind, name, given, x.dtype)
        if reshaped:
            name = to.file.reshape(name, tuple(out_shape[a] for a in axes))
        return [to.cast(Tensor(name, tuple(out_shape), x.dtype, inverse(axes)), dtype_of(eqn))]

    return rule


def _pooled(to: Exporter, kind: str, name: str, given: dict[str, Any], dtype: np.dtype) -> str:
    if kind == "max":
        return to.file.op("MaxPool", name, **given)
    if kind == "min":
        return to.file.op("Neg", to.file.op("MaxPool", to.file.op("Neg", name), **given))
    mean = to.file.op("AveragePool", name, count_include_pad=1, **given)
    return to.file.op("Mul", mean, to.file.const(np.asarray(math.prod(given["kernel_shape"]), dtype)))


WINDOWS: dict[str, Rule] = {f"reduce_window_{kind}": _window(kind) for kind in ("max", "min", "sum")}
