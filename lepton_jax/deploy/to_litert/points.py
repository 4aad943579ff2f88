"""Places in a program where a value is rounded, marked for the converter.

JAX has no types for quantized values. A place is a call of a function that nobody has, with a number; `Points.written`
puts ``stablehlo.uniform_quantize`` and ``uniform_dequantize`` there, of the types that the number stands for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from lepton_jax.core.typing import Array

TARGET = "lepton.round"


class Point(NamedTuple):
    """How a value is rounded: ``codes = clip(round(x / scale) + zero_point, low, 127)``.

    Attributes:
      scale: float32, one number, or one for each index along `axis`.
      zero_point: from -128 to 127.
      axis: along which scales differ; None: one for all.
      low: the least code.
    """

    scale: np.ndarray
    zero_point: int = 0
    axis: int | None = None
    low: int = -128

    def type_of(self, shape: str) -> str:
        """The quantized type of a tensor, as it is written; `shape` is ``"2x?x3x"``."""
        scales = [f"{float(one):.9e}" for one in self.scale.reshape(-1)]
        kept = f"{scales[0]}:{self.zero_point}" if self.axis is None else f"{{{', '.join(scales)}}}"
        along = "" if self.axis is None else f":{self.axis}"
        bounds = "" if self.low == -128 else f"<{self.low}:127>"
        return f"tensor<{shape}!quant.uniform<i8{bounds}:f32{along}, {kept}>>"


class Points:
    """The places of one program, in the order in which they are marked."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def mark(self, x: Array, point: Point) -> Array:
        """Return a value of the same shape and dtype that will be rounded."""
        self._points.append(point)
        call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return call(x, number=np.int32(len(self._points) - 1))

    def written(self, module: Any, ir: Any) -> None:
        """Replace the marks of a module, of the bindings `ir`, by roundings."""
        for operation in operations(module.operation):
            if operation.name != "stablehlo.custom_call" or _target(operation, ir) != TARGET:
                continue
            number = ir.IntegerAttr(ir.DictAttr(operation.attributes["mhlo.backend_config"])["number"]).value
            kind = ir.RankedTensorType(operation.operands[0].type)
            lengths = ["?" if kind.is_dynamic_dim(i) else str(kind.get_dim_size(i)) for i in range(kind.rank)]
            rounded = ir.Type.parse(self._points[number].type_of("".join(f"{length}x" for length in lengths)))
            with ir.InsertionPoint(operation), ir.Location.unknown():
                codes = ir.Operation.create("stablehlo.uniform_quantize", results=[rounded], operands=[operation.operands[0]])
                back = ir.Operation.create("stablehlo.uniform_dequantize", results=[kind], operands=[codes.results[0]])
            operation.results[0].replace_all_uses_with(back.results[0])
            operation.erase()


def _target(operation: Any, ir: Any) -> str:
    return ir.StringAttr(operation.attributes["call_target_name"]).value


def operations(operation: Any) -> list[Any]:
    """All operations within one, of any depth."""
    inner = [one.operation for region in operation.regions for block in region for one in block]
    return [found for one in inner for found in (*operations(one), one)]
