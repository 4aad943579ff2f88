"""Which operation runs in which precision: the table, and patterns that extend it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from lepton_jax.graph import _compat
from lepton_jax.graph.matching import fits, patterns_of, there_is
from lepton_jax.graph.trace import Equation, Traced, walk

Kind = Literal["compute", "float32", "follow", "exact"]
"""How an operation is run: in the compute dtype; in float32; in what its operands have; as it is, since it rounds nothing."""

COMPUTE = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})

# fmt: off
# Rounding once more at their result is harmless: sums of few terms, products, choices, and activations that are bounded.
FOLLOW = frozenset({
    "add", "add_any", "sub", "mul", "neg", "abs", "sign", "max", "min", "clamp", "select_n", "concatenate", "pad",
    "dynamic_update_slice", "scatter", "square", "integer_pow", "tanh", "logistic", "floor", "ceil", "round", "copysign",
})

# They move, choose or compare values.
EXACT = frozenset({
    "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "slice", "dynamic_slice", "gather", "rev",
    "copy", "copy_p", "reduce_max", "reduce_min", "reduce_window_max", "cummax", "cummin", "argmax", "argmin", "sort",
    "top_k", "eq", "ne", "lt", "le", "gt", "ge", "is_finite", "optimization_barrier", "sharding_constraint", "name",
    "convert_element_type", "stop_gradient", "split", "real",
})
COMPARE = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})

LINEAR = frozenset({
    "add", "add_any", "sub", "neg", "select_n", "concatenate", "pad", "dynamic_update_slice", "scatter", "scatter-add",
    "reduce_sum", "reduce_window_sum", "cumsum", "copy", "copy_p", "reshape", "broadcast_in_dim", "squeeze",
    "expand_dims", "transpose", "slice", "dynamic_slice", "gather", "rev", "convert_element_type", "stop_gradient",
    "split", "real", "name", "optimization_barrier", "sharding_constraint",
})
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Patterns that overrule the table; float32 goes before compute.

    A pattern is a glob over operations' names (``'Dense_0/dot_general'``), over the modules that they stand in
    (``'*/Dense_0'``; the outermost need not be written), or a primitive (``'exp'``).

    Args:
      compute: what runs in the compute dtype.
      float32: what stays in float32.

    Raises:
      TypeError: for what is no pattern or tuple of patterns.

    Example:
      >>> Rules(float32="Dense_0")
      Rules(compute=(), float32=('Dense_0',))
    """

    compute: str | Sequence[str] = ()
    float32: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("compute", "float32"):
            object.__setattr__(self, name, patterns_of(f"autocast: {name}", getattr(self, name)))

    def check(self, traced: Traced) -> None:
        """Raise unless every pattern matches an operation.

        Raises:
          ValueError: with the pattern and the modules and operations there are.
        """
        if not (self.compute or self.float32):
            return
        equations = [(traced.names[eqn.path], eqn) for eqn in walk(traced.jaxpr)]
        for kind in ("compute", "float32"):
            for pattern in getattr(self, kind):
                if not any(fits(pattern, name, eqn) for name, eqn in equations):
                    there = there_is(traced, (eqn for _, eqn in equations))
                    raise ValueError(f"autocast: {kind}={pattern!r} matches no operation of {traced.name}. {there}")

    def __call__(self, eqn: Equation, name: str) -> tuple[Kind, str]:
        """How an operation is run, and which rule says so."""
        for kind in ("float32", "compute"):
            for pattern in getattr(self, kind):
                if fits(pattern, name, eqn):
                    return kind, f"{kind}={pattern!r}"
        return table(eqn)


def table(eqn: Equation) -> tuple[Kind, str]:
    """What the table says of an operation.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> [eqn] = trace(lambda v, x: jnp.exp(x), {}, jnp.ones(2)).equations()
      >>> table(eqn)
      ('float32', 'table: exp')
    """
    name = eqn.primitive
    if name in COMPUTE:
        return "compute", f"table: {name}"
    if name == "integer_pow" and eqn.params["y"] < 0:
        return "float32", "table: a negative power"
    if name == "div":
        # Scaling by one number is a product; a quotient of arrays may have any size.
        if _compat.is_literal(eqn.invars[1]) or eqn.in_avals[1].size == 1:
            return "follow", "table: div by one number"
        return "float32", "table: div"
    if name == "convert_element_type" and not (is_wide(eqn.in_avals[0]) or not is_wide(eqn.out_avals[0])):
        return "float32", "as the model casts"
    if name in FOLLOW:
        return "follow", f"table: {name}"
    if name in EXACT:
        return "exact", f"table: {name}"
    return "float32", f"table: {name}"


def is_wide(aval: Any) -> bool:
    """Whether a value was traced in float32 or float64: only such values are ever narrowed."""
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and dtype in (jnp.float32, jnp.float64)
