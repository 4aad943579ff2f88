"""The table of what is quantized, and of what is not and why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.typing import PyTree
from lepton_jax.formats import Format
from lepton_jax.graph.cost import dense_shapes
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, trace
from lepton_jax.leaves.form import Native
from lepton_jax.native.interpreter import PackedInterpreter
from lepton_jax.quantization.decide import decide, unseen
from lepton_jax.quantization.rules import Operand, Rule, rules_of
from lepton_jax.quantization.sites import part, values_of


class Explanation(tuple[Operand, ...]):
    """Every operand of every dot, convolution and gather, in program order; printed as a table.

    Attributes:
      unseen: operations that hold computations which cannot be looked into.

    Example:
      >>> from lepton_jax.quantization import Dynamic
      >>> found = explain(lambda w, x: x @ w, Rule(quantizer=Dynamic()), jax.numpy.eye(2), jax.numpy.ones((1, 2)))
      >>> [operand.argument for operand in found if operand.quantizer is None]
      ['rhs']
    """

    unseen: tuple[str, ...] = ()

    def __str__(self) -> str:
        heads = ("operation", "operand", "is", "shape", "rounded by", "rule")
        rows = [heads, *(_row(operand) for operand in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        lines += [f"{name}: cannot be looked into; nothing in it is rounded" for name in self.unseen]
        return "\n".join(lines)


@checked_but("rules")
def explain(apply: Apply, rules: Rule | Sequence[Rule], variables: PyTree, *inputs: Any, **static: Any) -> Explanation:
    """Return what `quantize_activations` does to every operand and why not where nothing; ``print`` it. Nothing is computed.

    Args:
      apply: as for `quantize_activations`.
      rules: likewise.
      variables: shapes and dtypes will do.
      *inputs: likewise.
      **static: keywords of `apply`.

    Raises:
      ValueError: for rules that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.quantization import Dynamic, Uniform
      >>> rule = Rule(quantizer=Dynamic(Uniform(4)))
      >>> print(explain(lambda w, x: x @ w, rule, jnp.ones((2, 2)), jnp.ones((1, 2))))
      operation    operand  is          shape   rounded by     rule
      dot_general  lhs      activation  (1, 2)  Dynamic(int4)  0
      dot_general  rhs      weight      (2, 2)  -              no rule matches
    """
    several = rules_of(rules)
    own, _ = part(variables)
    traced = trace(apply, dense_shapes(own), *dense_shapes(tuple(inputs)), **static)
    decided = decide(traced, several)
    looking = _Looking(traced, decided)
    jax.eval_shape(lambda own, *inputs: looking.run(values_of(own, inputs, static)), own, *inputs)
    found = Explanation(looking.found.get((o.operation, o.argument), o) for operands in decided.values() for o in operands)
    found.unseen = unseen(traced)
    return found


class _Looking(PackedInterpreter):
    """Notes the operands that are packed."""

    def __init__(self, traced: Traced, decided: Mapping[CallPath, Sequence[Operand]]):
        super().__init__(traced)
        self.decided, self.found = decided, dict[tuple[str, str], Operand]()

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        for operand, value in zip(self.decided.get(eqn.path, ()), values):
            if isinstance(value, Native):
                fmt = getattr(value, "format", None)
                reason = f"is packed already, {fmt.name if isinstance(fmt, Format) else type(value).__name__}"
                packed = replace(operand, quantizer=None, reason=reason)
                self.found[operand.operation, operand.argument] = packed
        return super().handle(eqn, values)


def _row(operand: Operand) -> tuple[str, ...]:
    leaves = [leaf for leaf in operand.leaves if leaf]
    what = f"{operand.kind} {', '.join(leaves)}" if leaves else operand.kind
    rule = f"{operand.rule}: {operand.reason}" if operand.reason and operand.rule is not None else operand.reason
    return (operand.operation, operand.argument, what, str(operand.shape), how(operand), rule or str(operand.rule))


def how(operand: Operand) -> str:
    """Return what an operand is rounded by, in short."""
    quantizer = operand.quantizer
    if quantizer is None:
        return "-"
    fmt = quantizer.format
    where = f", axis {fmt.channel_axis}" if fmt.channel_axis is not None else ""
    where += f", groups of {fmt.group_size}" if fmt.group_size is not None else ""
    where += f", per index of axes but {operand.axes}" if operand.axes is not None else ""
    return f"{type(quantizer).__name__}({fmt.name}{where})"
