"""Operations element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from lepton_jax.deploy.to_onnx.exporter import Exporter, Unsupported, array_of, is_zero
from lepton_jax.deploy.to_onnx.tensors import Tensor
from lepton_jax.graph.trace import Equation

Rule = Callable[[Exporter, Equation, Sequence[Any]], Sequence[Any] | None]


def dtype_of(eqn: Equation) -> np.dtype:
    """Of the first result."""
    return np.dtype(eqn.out_avals[0].dtype)


def constant(value: Any, like: Any) -> np.ndarray:
    """A scalar of the type of a value."""
    return np.asarray(value).astype(like.dtype)


def plain(kind: str, **attributes: Any) -> Rule:
    """The rule of an operation that ONNX has."""

    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        return [to.elementwise(kind, values, dtype_of(eqn), **attributes)]

    return rule


def logical(kind: str, bitwise: str) -> Rule:
    """The rule of an operation on booleans and on bits."""

    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        is_bool = eqn.in_avals[0].dtype == bool
        return [to.elementwise(kind if is_bool else bitwise, values, dtype_of(eqn))]

    return rule


def comparison(kind: str, negated: bool = False) -> Rule:
    """The rule of a comparison; of booleans as numbers."""

    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        values = [to.plain(value) for value in values]
        if values[0].dtype == bool:
            values = [to.cast(value, np.int32) for value in values]
        out = to.elementwise(kind, values, np.bool_)
        return [replace(out, name=to.file.op("Not", out.name)) if negated else out]

    return rule


def unary(write: Callable[[Exporter, Tensor], Tensor]) -> Rule:
    """The rule of a function of one value, written in several nodes in a type that engines know."""

    def rule(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        return [to.cast(write(to, to.worked(values[0])), dtype_of(eqn))]

    return rule


def passed(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """The operand itself."""
    return list(values)


def _then(to: Exporter, kind: str, *values: Any) -> Tensor:
    """An operation whose result is of the type of its first operand that is no condition."""
    return to.elementwise(kind, values, values[-1].dtype)


def _maximum(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    dtype = dtype_of(eqn)
    if dtype.kind == "b":
        return [to.elementwise("Or", values, dtype)]
    for value, other in (values, values[::-1]):
        if isinstance(value, Tensor) and is_zero(other) and dtype in (np.float32, np.float64, np.float16):
            return [replace(value, name=to.file.op("Relu", value.name))]
    return [to.elementwise("Max", values, dtype)]


def _minimum(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    return [to.elementwise("And" if dtype_of(eqn).kind == "b" else "Min", values, dtype_of(eqn))]


def _power(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    x, y = to.worked(values[0]), eqn.params["y"]
    if y in (2, 3):
        square = _then(to, "Mul", x, x)
        return [to.cast(square if y == 2 else _then(to, "Mul", square, x), dtype_of(eqn))]
    out = _then(to, "Pow", x, constant(abs(y), x))
    return [to.cast(replace(out, name=to.file.op("Reciprocal", out.name)) if y < 0 else out, dtype_of(eqn))]


def _expm1(to: Exporter, x: Tensor) -> Tensor:
    # tanh(x / 2) (exp(x) + 1), which keeps small results exact.
    half = _then(to, "Mul", x, constant(0.5, x))
    above = _then(to, "Add", replace(x, name=to.file.op("Exp", x.name)), constant(1, x))
    return _then(to, "Mul", replace(half, name=to.file.op("Tanh", half.name)), above)


def _log1p(to: Exporter, x: Tensor) -> Tensor:
    # 2 atanh(x / (x + 2)), which is exact for small x, and log(1 + x) for large.
    part = _then(to, "Div", x, _then(to, "Add", x, constant(2, x)))
    small = _then(to, "Mul", replace(part, name=to.file.op("Atanh", part.name)), constant(2, x))
    above = _then(to, "Add", x, constant(1, x))
    near = to.elementwise("Less", [replace(x, name=to.file.op("Abs", x.name)), constant(0.5, x)], np.bool_)
    return _then(to, "Where", near, small, replace(above, name=to.file.op("Log", above.name)))


def _cbrt(to: Exporter, x: Tensor) -> Tensor:
    root = _then(to, "Pow", replace(x, name=to.file.op("Abs", x.name)), constant(1 / 3, x))
    return _then(to, "Mul", root, replace(x, name=to.file.op("Sign", x.name)))


def _round(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    if int(eqn.params["rounding_method"]) == 1:
        return [to.elementwise("Round", values, dtype_of(eqn))]
    x = to.worked(values[0])
    out = _then(to, "Add", replace(x, name=to.file.op("Abs", x.name)), constant(0.5, x))
    out = _then(to, "Mul", replace(out, name=to.file.op("Floor", out.name)), replace(x, name=to.file.op("Sign", x.name)))
    return [to.cast(out, dtype_of(eqn))]


def _atan2(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    y, x = (to.worked(value) for value in values)
    zero = constant(0, y)
    angle = _then(to, "Div", y, x)
    angle = replace(angle, name=to.file.op("Atan", angle.name))
    none = to.elementwise("And", [to.elementwise("Equal", [one, zero], np.bool_) for one in (x, y)], np.bool_)
    angle = _then(to, "Where", none, zero, angle)
    left = to.elementwise("Less", [x, zero], np.bool_)
    above = to.elementwise("GreaterOrEqual", [y, zero], np.bool_)
    turn = _then(to, "Where", above, constant(math.pi, y), constant(-math.pi, y))
    return [to.cast(_then(to, "Where", left, _then(to, "Add", angle, turn), angle), dtype_of(eqn))]


def _convert(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    return [to.cast(to.plain(values[0]), eqn.params["new_dtype"])]


def _clamp(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    low, x, high = values
    dtype = dtype_of(eqn)
    return [to.elementwise("Min", [to.elementwise("Max", [x, low], dtype), high], dtype)]


def _select(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    which, *cases = values
    out = cases[0]
    for index, case in enumerate(cases[1:], 1):
        chosen = which if which.dtype == bool else to.elementwise("Equal", [which, constant(index, which)], np.bool_)
        out = where(to, chosen, case, out)
    return [out]


def where(to: Exporter, condition: Any, yes: Any, no: Any) -> Any:
    """Choose element by element; of booleans by logic, for which engines have no choice."""
    if yes.dtype != bool:
        return to.elementwise("Where", [condition, yes, no], yes.dtype)
    if isinstance(condition, Tensor):
        negated: Any = replace(condition, name=to.file.op("Not", condition.name))
    else:
        negated = np.logical_not(np.asarray(array_of(condition)))
    both = [to.elementwise("And", pair, np.bool_) for pair in ([condition, yes], [negated, no])]
    return to.elementwise("Or", both, np.bool_)


def _is_finite(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    x = to.worked(values[0])
    bad = to.file.op("Or", to.file.op("IsNaN", x.name), to.file.op("IsInf", x.name))
    return [replace(x, name=to.file.op("Not", bad), dtype=np.dtype(bool))]


def _reduce_precision(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    bits = (eqn.params["exponent_bits"], eqn.params["mantissa_bits"])
    info = ml_dtypes.finfo(values[0].dtype)
    if bits == (info.bits - 1 - info.nmant, info.nmant):
        return list(values)
    narrow = {(8, 7): ml_dtypes.bfloat16, (5, 10): np.float16}.get(bits)
    if narrow is None:
        raise Unsupported(f"{bits[0]} bits of exponent and {bits[1]} of mantissa")
    return [to.cast(to.cast(values[0], narrow), values[0].dtype)]


def _divide(to: Exporter, eqn: Equation, values: Sequence[Any]) -> list[Any]:
    divisor = array_of(values[1])
    if divisor is not None and divisor.dtype == np.float32 and divisor.size == 1 and math.frexp(divisor.item())[0] == 0.5:
        values = [values[0], replace(values[1], array=1 / divisor) if hasattr(values[1], "array") else 1 / divisor]
        return [to.elementwise("Mul", values, dtype_of(eqn))]  # exact, and faster
    return [to.elementwise("Div", values, dtype_of(eqn))]


def _one_of(kind: str) -> Callable[[Exporter, Tensor], Tensor]:
    return lambda to, x: replace(x, name=to.file.op(kind, x.name))


def _twice(first: str, second: str) -> Callable[[Exporter, Tensor], Tensor]:
    return lambda to, x: replace(x, name=to.file.op(second, to.file.op(first, x.name)))


_SAME = {
    "sub": "Sub",
    "mul": "Mul",
    "pow": "Pow",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "abs": "Abs",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "add_any": "Add",
}
_PASSED = "stop_gradient copy copy_p optimization_barrier sharding_constraint name pvary pbroadcast"

ELEMENTWISE: dict[str, Rule] = {
    **{name: plain(kind) for name, kind in _SAME.items()},
    **dict.fromkeys(_PASSED.split(), passed),
    "eq": comparison("Equal"),
    "ne": comparison("Equal", negated=True),
    "lt": comparison("Less"),
    "le": comparison("LessOrEqual"),
    "lt_to": comparison("Less"),
    "le_to": comparison("LessOrEqual"),
    "gt": comparison("Greater"),
    "ge": comparison("GreaterOrEqual"),
    "and": logical("And", "BitwiseAnd"),
    "or": logical("Or", "BitwiseOr"),
    "xor": logical("Xor", "BitwiseXor"),
    "not": logical("Not", "BitwiseNot"),
    "rem": plain("Mod", fmod=1),
    "div": _divide,
    "max": _maximum,
    "min": _minimum,
    "rsqrt": unary(_twice("Sqrt", "Reciprocal")),
    "square": unary(lambda to, x: _then(to, "Mul", x, x)),
    "exp2": unary(lambda to, x: _then(to, "Pow", constant(2, x), x)),
    "erfc": unary(lambda to, x: _then(to, "Sub", constant(1, x), _one_of("Erf")(to, x))),
    "integer_pow": _power,
    "expm1": unary(_expm1),
    "log1p": unary(_log1p),
    "cbrt": unary(_cbrt),
    "round": _round,
    "atan2": _atan2,
    "convert_element_type": _convert,
    "clamp": _clamp,
    "select_n": _select,
    "is_finite": _is_finite,
    "reduce_precision": _reduce_precision,
}
