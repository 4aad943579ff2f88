"""Arithmetic, comparisons and logic, element by element, with shapes that fit one another."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.interchange.onnx.host import is_dim, is_host, on_device
from lepton_jax.interchange.onnx.site import Rule, Site


def aligned(site: Site, *values: Any) -> tuple[Any, ...]:
    """The values with as many axes as the one that has most, all known or all of jax; room for the result is asked for."""
    if all(map(is_host, values)):
        arrays = [np.asarray(value) for value in values]
        if len(arrays) > 1:
            site.room(np.broadcast_shapes(*(array.shape for array in arrays)), np.result_type(*arrays))
        return tuple(arrays)
    kinds = [value.dtype for value in values if not is_host(value)]
    made = [on_device(value, kinds[0]) for value in values]
    rank = max(value.ndim for value in made)
    return tuple(value.reshape((1,) * (rank - value.ndim) + value.shape) for value in made)


def _joined(name: str) -> Rule:
    """An operation of two, or of all one after the other."""

    def function(site: Site, *values: Any) -> Any:
        def two(a: Any, b: Any) -> Any:
            a, b = aligned(site, a, b)
            return getattr(np if is_host(a) else jnp, name)(a, b)

        return values[0] if len(values) == 1 else reduce(two, values)

    return Rule(function, both=True)


def _alone(name: str) -> Rule:
    def function(site: Site, x: Any) -> Any:
        return getattr(np if is_host(x) else jnp, name)(x)

    return Rule(function, both=True)


def divide(site: Site, a: Any, b: Any) -> Any:
    """Quotients; of integers, without their remainder, towards zero."""
    a, b = aligned(site, a, b)
    if is_host(a):
        if a.dtype == object or b.dtype == object:
            return a // b
        if a.dtype.kind in "iu" and (b == 0).any():
            raise ValueError("a whole number is divided by zero")
        with np.errstate(all="ignore"):
            return (np.sign(a) * np.sign(b) * (abs(a) // abs(b))).astype(a.dtype) if a.dtype.kind in "iu" else a / b
    if jnp.issubdtype(a.dtype, jnp.integer):
        return lax.div(*jnp.broadcast_arrays(a, b.astype(a.dtype)))
    return a / b


def power(site: Site, x: Any, exponent: Any) -> Any:
    """``x ** exponent`` in the type of x."""
    dtype = x.dtype
    if is_host(exponent) and not is_host(x) and np.size(exponent) == 1 and np.ndim(exponent) <= x.ndim:
        number = np.asarray(exponent).item()
        if number == int(number) and abs(number) <= 64 and jnp.issubdtype(dtype, jnp.floating):
            return lax.integer_pow(x, int(number))
    a, b = aligned(site, x, exponent)
    if is_host(a):
        return np.power(a, b).astype(dtype)
    kind = jnp.result_type(a, b)
    return jnp.power(a.astype(kind), b.astype(kind)).astype(dtype)


def modulo(site: Site, a: Any, b: Any) -> Any:
    """The remainder, of the divisor's sign, or with `fmod` of the dividend's."""
    a, b = aligned(site, a, b)
    names = np if is_host(a) else jnp
    return (names.fmod if site.get("fmod", 0) else names.mod)(a, b)


def where(site: Site, condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`."""
    if all(map(is_host, (condition, a, b))):
        condition, a, b = aligned(site, condition, a, b)
        return np.where(condition, a, b)
    kinds = [value.dtype for value in (a, b) if not is_host(value)]
    dtype = kinds[0] if kinds else jax.dtypes.canonicalize_dtype(np.asarray(a).dtype)
    a, b = (on_device(value, dtype) for value in (a, b))
    condition, a, b = aligned(site, on_device(condition), a, b)
    return jnp.where(condition, a, b.astype(a.dtype))


def clip(site: Site, x: Any, low: Any = None, high: Any = None) -> Any:
    """Between two numbers, either of which may be left out."""
    low, high = site.get("min", low), site.get("max", high)
    for bound, name in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            bound = np.asarray(bound, x.dtype) if is_host(bound) else bound.astype(x.dtype)
            if is_host(bound) and bound.size == 1 and not is_host(x):
                bound = bound.reshape(())
                bound = _narrowed(bound, x.dtype)
            x = getattr(np if is_host(x) and is_host(bound) else jnp, name)(x, bound)
    return x


def _narrowed(bound: np.ndarray, dtype: Any) -> np.ndarray:
    return np.asarray(bound, dtype)


def mean(site: Site, *values: Any) -> Any:
    """The mean of several values."""
    total = RULES["Sum"].function(site, *values)
    return total / np.asarray(len(values), total.dtype)


def shifted(site: Site, x: Any, by: Any) -> Any:
    """Bits shifted left or right."""
    x, by = (on_device(one) for one in (x, by))
    x, by = aligned(site, x, by)
    shift: Callable[..., Any] = jnp.left_shift if site.get("direction") == "LEFT" else jnp.right_shift
    return shift(x, by)


def is_infinite(site: Site, x: Any) -> Any:
    """Where there is an infinity of a sign that is asked for."""
    up, down = site.get("detect_positive", 1), site.get("detect_negative", 1)
    infinite = jnp.isinf(x)
    return infinite & (((x > 0) & bool(up)) | ((x < 0) & bool(down)))


def signum(site: Site, x: Any) -> Any:
    """-1, 0 or 1."""
    if is_host(x) and x.dtype == object:
        return np.array([1 if is_dim(one) else np.sign(one) for one in x.reshape(-1)], object).reshape(x.shape)
    return np.sign(x) if is_host(x) else jnp.sign(x)


_TWO = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Sum": "add", "Max": "maximum", "Min": "minimum", "Equal": "equal",
    "Less": "less", "Greater": "greater", "LessOrEqual": "less_equal", "GreaterOrEqual": "greater_equal",
    "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}  # fmt: skip
_ONE = {
    "Not": "logical_not", "Neg": "negative", "Abs": "abs", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Floor": "floor",
    "Ceil": "ceil", "Round": "rint", "IsNaN": "isnan", "BitwiseNot": "bitwise_not", "Reciprocal": "reciprocal",
    "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "arcsin", "Acos": "arccos", "Atan": "arctan", "Sinh": "sinh",
    "Cosh": "cosh", "Tanh": "tanh", "Asinh": "arcsinh", "Acosh": "arccosh", "Atanh": "arctanh",
}  # fmt: skip
RULES: dict[str, Rule] = {
    **{op: _joined(name) for op, name in _TWO.items()},
    **{op: _alone(name) for op, name in _ONE.items()},
    "BitShift": Rule(shifted),
    "Clip": Rule(clip, both=True),
    "Div": Rule(divide, both=True),
    "Identity": Rule(lambda site, x: x, both=True, codes="moved"),
    "IsInf": Rule(is_infinite),
    "Mean": Rule(mean),
    "Mod": Rule(modulo, both=True),
    "Pow": Rule(power, both=True),
    "Sign": Rule(signum, both=True),
    "Where": Rule(where, both=True),
}
