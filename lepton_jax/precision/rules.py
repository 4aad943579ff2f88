"""Which operation runs in which precision: the table, patterns that extend it, and what was decided by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from lepton_jax.core.tables import table as text_table
from lepton_jax.core.typing import PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.matching import fits, patterns_of, there_is
from lepton_jax.graph.primitives import COMPARISONS, MOVING, PASSING, PRODUCTS, RAGGED, SENDING, SUMS_OVER_DEVICES, names
from lepton_jax.graph.trace import Apply, Equation, Traced, trace, walk

Kind = Literal["compute", "float32", "follow", "exact"]
"""How an operation is run: in the compute dtype; in float32; in what its operands have; as it is, since it rounds nothing."""

COMPUTE = PRODUCTS | RAGGED

FOLLOW = names(
    "add add_any sub mul neg abs sign max min clamp select_n concatenate pad dynamic_update_slice scatter square integer_pow "
    "tanh logistic floor ceil round copysign"
)
"""Rounding once more at their result is harmless: sums of few terms, products, choices, and activations that are bounded."""

EXACT = (MOVING | PASSING | COMPARISONS | SENDING) | names(
    "pmax pmin reduce_max reduce_min reduce_window_max cummax cummin argmax argmin sort top_k is_finite split real"
)
"""They move, choose or compare values."""

LINEAR = (MOVING | PASSING | SENDING | SUMS_OVER_DEVICES) | names(
    "add add_any sub neg select_n concatenate pad dynamic_update_slice scatter scatter-add reduce_sum reduce_window_sum cumsum "
    "split real"
)
"""Their derivative needs none of their values."""


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

    def trace(self, apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> Traced:
        """Trace a model in which every pattern matches an operation.

        Raises:
          ValueError: with the pattern and the modules and operations there are.
        """
        traced = trace(apply, variables, *inputs, **static)
        equations = [(traced.names[eqn.path], eqn) for eqn in walk(traced.jaxpr)]
        for kind in ("compute", "float32"):
            for pattern in getattr(self, kind):
                if not any(fits(pattern, name, eqn) for name, eqn in equations):
                    there = there_is(traced, (eqn for _, eqn in equations))
                    raise ValueError(f"autocast: {kind}={pattern!r} matches no operation of {traced.name}. {there}")
        return traced

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


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How one operation is run.

    Attributes:
      name: of the operation.
      mode: "compute", "narrow", "wide" (float32), "as is" or "call".
      reason: the rule that decided.
      operands: dtypes in which it takes its operands.
      results: dtypes of its results.

    Example:
      >>> one = Decision(name="exp", mode="wide", reason="table: exp", operands=("float32",), results=("float32",))
      >>> one.mode
      'wide'
    """

    name: str
    mode: str
    reason: str
    operands: tuple[str, ...]
    results: tuple[str, ...]


class Decisions(tuple[Decision, ...]):
    """Every operation in program order; printed as a table.

    Example:
      >>> exp = Decision(name="exp", mode="wide", reason="table: exp", operands=("float32",), results=("float32",))
      >>> print(Decisions([exp]))
      operation  runs  operands  results  rule
      exp        wide  float32   float32  table: exp
    """

    def __str__(self) -> str:
        rows = [(d.name, d.mode, ", ".join(d.operands), ", ".join(d.results), d.reason) for d in self]
        return text_table([("operation", "runs", "operands", "results", "rule"), *rows], left=range(5))
