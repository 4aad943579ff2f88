"""The table of what mixed precision decided."""

from dataclasses import dataclass

from lepton_jax.core.tables import table


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
        return table([("operation", "runs", "operands", "results", "rule"), *rows], left=range(5))
