"""Products, reductions, look-ups and sorting of StableHLO, done in jax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from lepton_jax.artifact.stablehlo.evaluate import Program, element_of, ints, matrix, only_operation, shape_of, text
from lepton_jax.artifact.stablehlo.lengths import as_array, lengths_of
from lepton_jax.core.errors import ArtifactError

Rule = Callable[[Program, Any, list[Any], dict[Any, Any]], Any]


def _dot(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    names = ("contracting_dimensions", "batching_dimensions")
    pairs: Any = tuple((tuple(getattr(numbers, f"lhs_{n}")), tuple(getattr(numbers, f"rhs_{n}"))) for n in names)
    x, weight = map(as_array, values)
    return lax.dot_general(x, weight, pairs, preferred_element_type=element_of(op))


def _convolution(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    attributes = op.attributes
    numbers = stablehlo.ConvDimensionNumbers(attributes["dimension_numbers"])
    rank = len(shape_of(op)) - 2

    def each(name: str) -> tuple[int, ...]:
        return ints(attributes[name]) if name in attributes else (1,) * rank

    spec = lax.ConvDimensionNumbers(
        (numbers.input_batch_dimension, numbers.input_feature_dimension, *numbers.input_spatial_dimensions),
        (numbers.kernel_output_feature_dimension, numbers.kernel_input_feature_dimension, *numbers.kernel_spatial_dimensions),
        (numbers.output_batch_dimension, numbers.output_feature_dimension, *numbers.output_spatial_dimensions),
    )
    x, kernel = map(as_array, values)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=each("window_strides"),
        padding=matrix(attributes["padding"]) if "padding" in attributes else [(0, 0)] * rank,
        lhs_dilation=each("lhs_dilation"),
        rhs_dilation=each("rhs_dilation"),
        dimension_numbers=spec,
        feature_group_count=int(ir.IntegerAttr(attributes["feature_group_count"])),
        batch_group_count=int(ir.IntegerAttr(attributes["batch_group_count"])),
        preferred_element_type=element_of(op),
    )


_REDUCERS = {"add": "sum", "maximum": "max", "minimum": "min", "multiply": "prod", "and": "and", "or": "or"}
_COMBINED = {"add": lax.add, "maximum": lax.max, "minimum": lax.min, "multiply": lax.mul}


def _reduce(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    axes = ints(op.attributes["dimensions"])
    name = only_operation(op.regions[0])
    half = len(values) // 2
    operands = [as_array(value) for value in values[:half]]
    if name in _REDUCERS and half == 1:
        kind = lax.bitwise_and if name == "and" else lax.bitwise_or if name == "or" else _COMBINED[name]
        return lax.reduce(operands[0], np.asarray(values[1]), kind, axes)
    directions = [
        text(one.operation.attributes["comparison_direction"])
        for one in op.regions[0].blocks[0].operations
        if one.operation.name == "stablehlo.compare"
    ]
    if half == 2 and len(axes) == 1 and {"GT", "LT"} & set(directions):
        largest = "GT" in directions
        find, best = (lax.argmax, jnp.max) if largest else (lax.argmin, jnp.min)
        return [best(operands[0], axes), find(operands[0], axes[0], operands[1].dtype)]
    raise ArtifactError("the program has a reduction by a function that is not known here")


def _reduce_window(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    name, attributes = only_operation(op.regions[0]), op.attributes
    if name not in _COMBINED or len(values) != 2:
        raise ArtifactError("the program has a reduction of windows by a function that is not known here")
    size = ints(attributes["window_dimensions"])

    def each(key: str) -> tuple[int, ...]:
        return ints(attributes[key]) if key in attributes else (1,) * len(size)

    padding = matrix(attributes["padding"]) if "padding" in attributes else [(0, 0)] * len(size)
    if name == "multiply" and (found := _running(size, padding)) is not None:
        return lax.cumprod(as_array(values[0]), found[0], reverse=found[1])
    rest = (each("base_dilations"), each("window_dilations"))
    return lax.reduce_window(
        as_array(values[0]), np.asarray(values[1]), _COMBINED[name], size, each("window_strides"), padding, *rest
    )


def _running(size: Any, padding: Any) -> tuple[int, bool] | None:
    """The axis of a running product, and whether it runs backwards; None if the windows are others."""
    axes = [axis for axis, length in enumerate(size) if length != 1 or padding[axis] != (0, 0)]
    if len(axes) != 1:
        return None
    ends = {(size[axes[0]] - 1, 0): False, (0, size[axes[0]] - 1): True}
    return (axes[0], ends[padding[axes[0]]]) if padding[axes[0]] in ends else None


def _gather(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    numbers = stablehlo.GatherDimensionNumbers(op.attributes["dimension_numbers"])
    sizes = lengths_of(values[2]) if len(values) > 2 else ints(op.attributes["slice_sizes"])
    operand, indices = as_array(values[0]), as_array(values[1])
    if numbers.index_vector_dim == indices.ndim:
        indices = indices[..., None]
    given = lax.GatherDimensionNumbers(
        offset_dims=tuple(numbers.offset_dims),
        collapsed_slice_dims=tuple(numbers.collapsed_slice_dims),
        start_index_map=tuple(numbers.start_index_map),
        operand_batching_dims=tuple(numbers.operand_batching_dims),
        start_indices_batching_dims=tuple(numbers.start_indices_batching_dims),
    )
    return lax.gather(operand, indices, given, sizes, mode="clip")


def _scatter(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    numbers = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
    given = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(numbers.update_window_dims),
        inserted_window_dims=tuple(numbers.inserted_window_dims),
        scatter_dims_to_operand_dims=tuple(numbers.scattered_dims_to_operand_dims),
        operand_batching_dims=tuple(numbers.input_batching_dims),
        scatter_indices_batching_dims=tuple(numbers.scatter_indices_batching_dims),
    )
    kinds: dict[str, Callable[..., Any]] = {
        "add": lax.scatter_add,
        "multiply": lax.scatter_mul,
        "maximum": lax.scatter_max,
        "minimum": lax.scatter_min,
    }
    name = only_operation(op.regions[0])
    only_returns = len(list(op.regions[0].blocks[0].operations)) == 1
    put: Callable[..., Any] | None = lax.scatter if only_returns else kinds.get(name)
    if put is None or len(values) != 3:
        raise ArtifactError("the program writes at indices by a function that is not known here")
    return put(*map(as_array, values), given, mode="drop")


def _sort(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    axis = int(ir.IntegerAttr(op.attributes["dimension"]))
    compared = [one.operation for one in op.regions[0].blocks[0].operations if one.operation.name == "stablehlo.compare"]
    operands = [as_array(value) for value in values]
    used = {argument.arg_number for argument in op.regions[0].blocks[0].arguments if list(argument.uses)}
    if text(compared[-1].attributes["comparison_direction"]) == "GT":
        order = lax.sort([-operands[0], lax.broadcasted_iota(np.int32, operands[0].shape, axis)], dimension=axis, num_keys=1)[1]
        return [jnp.take_along_axis(operand, order, axis) for operand in operands]
    return list(lax.sort(operands, dimension=axis, num_keys=max(used) // 2 + 1, is_stable=True))


ARRAYS: dict[str, Rule] = {
    "dot_general": _dot,
    "convolution": _convolution,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "gather": _gather,
    "dynamic_gather": _gather,
    "scatter": _scatter,
    "sort": _sort,
}
