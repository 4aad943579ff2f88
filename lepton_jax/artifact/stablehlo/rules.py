"""How each operation of StableHLO is done in jax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lib.mlir import ir

from lepton_jax.artifact.stablehlo.arrays import ARRAYS, Rule
from lepton_jax.artifact.stablehlo.evaluate import Program, element_of, elements, ints, shape_of, text
from lepton_jax.artifact.stablehlo.lengths import Lengths, as_array, kept, lengths_of, objects
from lepton_jax.core.errors import ArtifactError


def plain(function: Callable[..., Any]) -> Rule:
    """The rule of an operation that jax has; on known numbers it is done at once, so that shapes stay known."""

    def rule(program: Program, op: Any, values: list[Any], env: Any) -> Any:
        values = [as_array(value) for value in values]
        if all(isinstance(value, np.ndarray | np.generic) and np.size(value) <= 1024 for value in values):
            with jax.ensure_compile_time_eval():
                return np.asarray(function(*values))
        return function(*values)

    return rule


def on_lengths(of_objects: Callable[..., np.ndarray], function: Callable[..., Any]) -> Rule:
    """The rule of an operation that programs also compute lengths by."""

    def rule(program: Program, op: Any, values: list[Any], env: Any) -> Any:
        known = all(isinstance(value, Lengths | np.ndarray | np.generic) for value in values)
        if known and any(isinstance(value, Lengths) for value in values):
            return kept(np.asarray(of_objects(*map(objects, values)), object))
        return plain(function)(program, op, values, env)

    return rule


def _constant(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    return elements(op.attributes["value"])


def _reshape(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    if isinstance(values[0], Lengths):
        return kept(values[0].array.reshape(shape_of(op)))
    return plain(lambda x: lax.reshape(x, shape_of(op)))(program, op, values, env)


def _concatenate(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    axis = int(ir.IntegerAttr(op.attributes["dimension"]))
    if any(isinstance(value, Lengths) for value in values) and all(
        isinstance(value, Lengths | np.ndarray | np.generic) for value in values
    ):
        return kept(np.concatenate([objects(value) for value in values], axis))
    return plain(lambda *parts: lax.concatenate(parts, axis))(program, op, values, env)


def _convert(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    if isinstance(values[0], Lengths) and element_of(op).kind in "iu":
        return values[0]
    return plain(lambda x: lax.convert_element_type(x, element_of(op)))(program, op, values, env)


def _broadcast(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    axes = ints(op.attributes["broadcast_dimensions"])
    shape = lengths_of(values[1]) if len(values) > 1 else shape_of(op)
    x = as_array(values[0])
    if isinstance(x, np.ndarray | np.generic) and len(values) == 1 and np.prod(shape) <= 1024:
        with jax.ensure_compile_time_eval():
            return np.asarray(lax.broadcast_in_dim(np.asarray(x), shape, axes))
    return lax.broadcast_in_dim(x, shape, axes)


def _slice(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    start, limit, stride = (ints(op.attributes[name]) for name in ("start_indices", "limit_indices", "strides"))
    if isinstance(values[0], Lengths):
        return kept(values[0].array[tuple(map(slice, start, limit, stride))])
    return plain(lambda x: lax.slice(x, start, limit, stride))(program, op, values, env)


def _real_slice(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    x, *bounds = values
    start, limit, stride = map(lengths_of, bounds)
    return lax.slice(as_array(x), start, limit, stride)


def _dynamic_slice(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    x, *starts = map(as_array, values)
    return lax.dynamic_slice(x, starts, ints(op.attributes["slice_sizes"]))


def _dynamic_update(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    x, update, *starts = map(as_array, values)
    return lax.dynamic_update_slice(x, update, starts)


def _pad(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    names = ("edge_padding_low", "edge_padding_high", "interior_padding")
    config = zip(*(ints(op.attributes[name]) for name in names))
    x, fill = map(as_array, values)
    return lax.pad(x, fill, list(config))


def _dynamic_pad(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    x, fill, *config = values
    return lax.pad(as_array(x), as_array(fill), list(zip(*map(lengths_of, config))))


def _iota(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    shape = lengths_of(values[0]) if values else shape_of(op)
    return lax.broadcasted_iota(element_of(op), shape, int(ir.IntegerAttr(op.attributes["iota_dimension"])))


def _compare(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    return plain(getattr(lax, text(op.attributes["comparison_direction"]).lower()))(program, op, values, env)


def _while(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    condition, body = (program.region(region, env) for region in op.regions)
    start = tuple(jnp.asarray(as_array(value)) for value in values)
    return list(lax.while_loop(lambda state: condition(*state)[0], lambda state: tuple(body(*state)), start))


def _case(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    regions = list(op.regions)
    if isinstance(values[0], np.ndarray | np.generic):
        index = int(values[0]) if op.name == "stablehlo.case" else int(not values[0])
        return program.run(regions[min(max(index, 0), len(regions) - 1)].blocks[0], [], env)
    branches = [program.region(region, env) for region in regions]
    if op.name == "stablehlo.if":
        return list(lax.cond(values[0], *branches))
    return list(lax.switch(values[0], branches))


def _call(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    callee = str(ir.FlatSymbolRefAttr(op.attributes["callee"]).value)
    return program.run(program.functions[callee].regions[0].blocks[0], values, {})


def _composite(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    """By the function of jax of that name; of any other by what it is made of."""
    name = str(ir.StringAttr(op.attributes["name"]).value).removeprefix("chlo.")
    if name == "top_k":
        return list(lax.top_k(as_array(values[0]), shape_of(op)[-1]))
    if name in _COMPOSITES:
        return plain(_COMPOSITES[name])(program, op, values, env)
    callee = str(ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value)
    return program.run(program.functions[callee].regions[0].blocks[0], values, {})


def _custom(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    target = str(ir.StringAttr(op.attributes["call_target_name"]).value)
    if target == "shape_assertion":
        if isinstance(values[0], np.ndarray | np.generic) and not np.all(values[0]):
            raise ArtifactError("the inputs' lengths do not keep to what the program says of them")
        return []
    if target == "Sharding":
        return values
    raise ArtifactError(f"the program calls {target}, which is not known here")


def _length(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    dim = jnp.shape(as_array(values[0]))[int(ir.IntegerAttr(op.attributes["dimension"]))]
    array = np.empty((), object)
    array[()] = dim
    return kept(array)


def _reduce_precision(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    exponent, mantissa = (int(ir.IntegerAttr(op.attributes[name])) for name in ("exponent_bits", "mantissa_bits"))
    return lax.reduce_precision(as_array(values[0]), exponent, mantissa)


def _transpose(program: Program, op: Any, values: list[Any], env: Any) -> Any:
    return plain(lambda x: lax.transpose(x, ints(op.attributes["permutation"])))(program, op, values, env)


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a // b


_UNARY: dict[str, Callable[..., Any]] = {
    "abs": lax.abs,
    "cbrt": lax.cbrt,
    "ceil": lax.ceil,
    "cosine": lax.cos,
    "exponential": lax.exp,
    "floor": lax.floor,
    "exponential_minus_one": lax.expm1,
    "log": lax.log,
    "log_plus_one": lax.log1p,
    "logistic": lax.logistic,
    "negate": lax.neg,
    "not": lax.bitwise_not,
    "rsqrt": lax.rsqrt,
    "sign": lax.sign,
    "sine": lax.sin,
    "sqrt": lax.sqrt,
    "tan": lax.tan,
    "tanh": lax.tanh,
    "is_finite": lax.is_finite,
    "optimization_barrier": lambda *x: list(x),
    "round_nearest_even": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "round_nearest_afz": lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
}
_BINARY: dict[str, Callable[..., Any]] = {
    "power": lax.pow,
    "atan2": lax.atan2,
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
    "shift_left": lax.shift_left,
    "shift_right_logical": lax.shift_right_logical,
    "shift_right_arithmetic": lax.shift_right_arithmetic,
    "clamp": lax.clamp,
    "select": lambda which, yes, no: lax.select_n(which, no, yes),
}

_COMPOSITES: dict[str, Callable[..., Any]] = {
    "erf": lax.erf,
    "erfc": lax.erfc,
    "square": lax.square,
    "tan": lax.tan,
    "sinh": lax.sinh,
    "cosh": lax.cosh,
    "asin": lax.asin,
    "acos": lax.acos,
    "atan": lax.atan,
    "asinh": lax.asinh,
    "acosh": lax.acosh,
    "atanh": lax.atanh,
}

RULES: dict[str, Rule] = {
    **ARRAYS,
    **{name: plain(function) for name, function in {**_UNARY, **_BINARY}.items()},
    "add": on_lengths(np.add, lax.add),
    "subtract": on_lengths(np.subtract, lax.sub),
    "multiply": on_lengths(np.multiply, lax.mul),
    "divide": on_lengths(_divided, lax.div),
    "remainder": on_lengths(np.remainder, lax.rem),
    "maximum": on_lengths(np.frompyfunc(lambda a, b: jax.core.max_dim(a, b), 2, 1), lax.max),
    "minimum": on_lengths(np.frompyfunc(lambda a, b: jax.core.min_dim(a, b), 2, 1), lax.min),
    "constant": _constant,
    "reshape": _reshape,
    "dynamic_reshape": lambda program, op, values, env: lax.reshape(as_array(values[0]), lengths_of(values[1])),
    "concatenate": _concatenate,
    "convert": _convert,
    "broadcast_in_dim": _broadcast,
    "dynamic_broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "real_dynamic_slice": _real_slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "pad": _pad,
    "dynamic_pad": _dynamic_pad,
    "iota": _iota,
    "dynamic_iota": _iota,
    "reverse": lambda program, op, values, env: lax.rev(as_array(values[0]), ints(op.attributes["dimensions"])),
    "compare": _compare,
    "while": _while,
    "case": _case,
    "if": _case,
    "call": _call,
    "composite": _composite,
    "custom_call": _custom,
    "get_dimension_size": _length,
    "reduce_precision": _reduce_precision,
}
