"""Labels through operations that act element by element."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.primitives import COMPARISONS, names
from lepton_jax.graph.trace import Equation

_KEEP_ZERO = names(
    "neg sin tan asin atan sinh asinh tanh atanh erf erf_inv expm1 log1p abs sign round floor ceil square real imag conj "
    "convert_element_type reduce_precision copy copy_p stop_gradient name bitcast_convert_type sqrt cbrt "
    "sharding_constraint device_put optimization_barrier pvary pbroadcast ppermute"
)
_ALL_ZERO = names("add sub add_any or xor complex")
_ANY_ZERO = names("mul mulhi and")
_FIRST_ZERO = names("shift_left shift_right_logical shift_right_arithmetic rem")
_OTHER = names(
    "acos acosh cos cosh exp exp2 log logistic rsqrt not is_finite lgamma digamma erfc bessel_i0e bessel_i1e population_count "
    "clz atan2 nextafter igamma igammac igamma_grad_a random_gamma_grad regularized_incomplete_beta polygamma zeta "
    "div pow integer_pow max min select_n clamp"
)
NAMES = _KEEP_ZERO | _ALL_ZERO | _ANY_ZERO | _FIRST_ZERO | COMPARISONS | _OTHER

ALIKE = NAMES - names("optimization_barrier device_put sharding_constraint bitcast_convert_type ppermute")
"""Of operands that are the same at all removed indices they make what is the same there."""

_SINGULAR = names("rsqrt log sqrt cbrt atan2 acosh lgamma digamma polygamma zeta")
"""Not finite at 0, or without a finite derivative there: a channel that is 0 would spoil the others by NaN."""

_SAME_UNIFORM = names("convert_element_type copy copy_p stop_gradient name reduce_precision")


def elementwise(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Unify the axes of equal length; an axis of length 1 that is broadcast says nothing.

    What is 0 at a removed index stays 0 through most operations (a product needs one factor that is 0, a sum all terms);
    where the operation is singular at 0 the axis is fixed. Integers that are compared are positions (a one-hot code, a
    causal mask), whose axes are fixed.
    """
    name = eqn.primitive
    if name in ("optimization_barrier", "device_put"):
        return list(ins)
    shape = lengths(eqn.out_avals[0].shape)
    if name == "bitcast_convert_type" and len(ins[0].atoms) != len(shape):
        labels.fix_all(ins, "bits that are read in another width")
        return [labels.immovable(shape)]
    positions = name in COMPARISONS and np.issubdtype(eqn.in_avals[0].dtype, np.integer)
    parts, alike = [], []
    for axis, n in enumerate(shape):
        full = [v for v in ins if len(v.atoms) == len(shape) and len(v.atoms[axis]) == n]
        if n == 1 or not full:
            parts.append(labels.still(n))
            continue
        flags = [v.zero[axis] if len(v.atoms) == len(shape) and len(v.atoms[axis]) == n else v.blank for v in ins]
        for other in full[1:]:
            labels.pair(full[0].atoms[axis], other.atoms[axis], name)
        for value, flag in zip(ins, flags):
            if flag and any(value is v for v in full) and _singular(name, eqn.params, ins, value):
                labels.fix(value.atoms[axis], f"{name} of a channel that is 0 when masked")
        if positions:
            labels.fix(full[0].atoms[axis], f"{name} of integer positions")
        zero = _stays_zero(name, eqn.params, ins, flags)
        parts.append((labels.best([value.atoms[axis] for value in full]), zero))
        if not zero and all(value.known(axis) for value in full):
            alike.append(axis)
    uniform = ins[0].uniform if name in _SAME_UNIFORM else None
    return [Axes.of(parts, uniform, alike)] * len(eqn.out_avals)


def _singular(name: str, params: Mapping[str, Any], ins: Sequence[Axes], value: Axes) -> bool:
    if name in ("div", "rem"):
        return value is ins[1]
    if name == "integer_pow":
        return params["y"] < 0
    if name == "pow":
        return value is ins[0] and not (ins[1].uniform is not None and ins[1].uniform >= 1)
    return name in _SINGULAR


def _stays_zero(name: str, params: Mapping[str, Any], ins: Sequence[Axes], zero: Sequence[bool]) -> bool:
    """Whether the result is 0 wherever the operands marked in `zero` are."""
    if name in _KEEP_ZERO or name in _FIRST_ZERO:
        return zero[0]
    if name in _ALL_ZERO:
        return all(zero)
    if name in _ANY_ZERO:
        return any(zero)
    match name:
        case "div":
            return zero[0] and not zero[1]
        case "integer_pow":
            return zero[0] and params["y"] > 0
        case "pow":
            return zero[0] and ins[1].uniform is not None and ins[1].uniform > 0
        case "select_n":
            return all(zero[1:])
        case "max":
            return _clipped(ins, zero, lambda bound: bound <= 0)
        case "min":
            return _clipped(ins, zero, lambda bound: bound >= 0)
        case "clamp":
            low, _, high = (value.uniform for value in ins)
            return zero[1] and low is not None and high is not None and low <= 0 <= high
    return False


def _clipped(ins: Sequence[Axes], zero: Sequence[bool], harmless: Any) -> bool:
    return any(zero) and all(z or (v.uniform is not None and harmless(v.uniform)) for v, z in zip(ins, zero))
