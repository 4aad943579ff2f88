"""Rules: which operand of which operation is quantized, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.errors import collect
from lepton_jax.graph import _compat
from lepton_jax.graph.flow import operand_origins, origins
from lepton_jax.graph.matching import fits, patterns_of, there_is
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, trace
from lepton_jax.paths import matches
from lepton_jax.quantization.formats import Format, layout
from lepton_jax.quantization.quantizers import ActivationQuantizer, Dynamic
from lepton_jax.typing import Path, PyTree

Argument = Literal["activation", "weight", "lhs", "rhs", "any"]
OPERANDS = {"dot_general": ("lhs", "rhs"), "conv_general_dilated": ("lhs", "rhs"), "gather": ("lhs",)}
"""The operations with operands to quantize, and what these are called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Says how operands of operations are quantized; of several rules the first that matches an operand decides.

    An operand matches if it does so in everything that is said.

    Args:
      quantizer: how; None leaves the operand as it is, whatever later rules say.
      operation: glob pattern(s) over operations' names (``'Dense_0/dot_general'``), modules (``'Dense_*'``; the outermost need
        not be written) and primitives; by default dots and convolutions. ``'gather'`` is what embeddings are looked up by.
      names: names of operations, whole and exact, as `explain` and `first_and_last` give them; none: any.
      argument: "activation", which an input of the model plays a part in; "weight", which is computed from parameters alone;
        "lhs" or "rhs", the first or second; or "any".
      path: glob pattern(s) over the paths of parameters: only operations that these go into (``'*/head/kernel'``); none: any.
      free_axes: one scale for every index of the axes that the operation does not sum over, in place of the format's
        granularity: a token's, an output channel's, an example's in a convolution. Integers can be multiplied at no finer one.

    Raises:
      TypeError: for what is no quantizer or pattern.
      ValueError: for an unknown argument.

    Example:
      >>> from lepton_jax.quantization import Uniform
      >>> rule = Rule(operation="Dense_*", quantizer=Dynamic(Uniform(8)))
      >>> rule.operation, rule.argument
      (('Dense_*',), 'activation')
    """

    quantizer: ActivationQuantizer | None
    operation: str | Sequence[str] = ("dot_general", "conv_general_dilated")
    names: Sequence[str] = ()
    argument: Argument = "activation"
    path: str | Sequence[str] = ()
    free_axes: bool = False

    def __post_init__(self) -> None:
        for name in ("operation", "names", "path"):
            object.__setattr__(self, name, patterns_of(f"Rule: {name}", getattr(self, name)))
        known = ("activation", "weight", "lhs", "rhs", "any")
        if self.argument not in known:
            raise ValueError(f"Rule: argument must be one of {', '.join(known)}; got {self.argument!r}.")
        quantizer = self.quantizer
        if quantizer is not None and not all(hasattr(quantizer, name) for name in ("format", "init", "quantized")):
            raise TypeError(
                f"Rule: quantizer must be one of activations, e.g. Dynamic({quantizer!r}), or None; got {quantizer!r}."
                if isinstance(quantizer, Format)
                else f"Rule: quantizer must be one of activations, e.g. Dynamic(Uniform(8)), or None; got {quantizer!r}."
            )

    def matches(self, operand: Operand, eqn: Equation, leaves: Sequence[Path]) -> bool:
        """Whether the rule speaks of an operand.

        Args:
          operand: of the operation.
          eqn: the operation.
          leaves: the paths of all parameters that go into the operation.
        """
        if self.argument not in ("any", operand.argument, operand.kind):
            return False
        if self.names and operand.operation not in self.names:
            return False
        if self.path and not any(matches(pattern, leaf, None) for pattern in self.path for leaf in leaves):
            return False
        return any(fits(pattern, operand.operation, eqn) for pattern in self.operation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operand:
    """An operand of a dot, a convolution or a gather, and what was decided about it.

    Attributes:
      operation: the operation's name.
      primitive: what it does.
      argument: "lhs" or "rhs".
      kind: "activation" or "weight".
      leaves: the parameters that a weight is computed from.
      shape: as traced; of one step in a loop.
      loops: the lengths of the scans around it, from outside in.
      rule: the place of the rule that decided, or None.
      quantizer: what it is rounded by, or None.
      axes: the axes that one range spans; None: as the format says.
      reason: why it is left alone; empty if it is not.
    """

    operation: str
    primitive: str
    argument: str
    kind: str
    leaves: tuple[Path, ...]
    shape: tuple[int, ...]
    loops: tuple[int, ...]
    rule: int | None = None
    quantizer: ActivationQuantizer | None = None
    axes: tuple[int, ...] | None = None
    reason: str = ""

    @property
    def is_gather(self) -> bool:
        """Whether rows of it are looked up: nothing is multiplied."""
        return self.primitive == "gather"

    @property
    def is_static(self) -> bool:
        """Whether it has a site."""
        return self.quantizer is not None and has_site(self.quantizer)


def has_site(quantizer: ActivationQuantizer) -> bool:
    """Whether a quantizer keeps arrays for every operand: a scale, a learned step.

    Example:
      >>> has_site(Dynamic())
      False
    """
    bound = jax.ShapeDtypeStruct((1,), jnp.float32)
    return bool(jax.tree.leaves(jax.eval_shape(quantizer.init, bound, bound)))


def decide(traced: Traced, rules: Rule | Sequence[Rule]) -> dict[CallPath, tuple[Operand, ...]]:
    """Decide about every operand of every dot, convolution and gather of a graph.

    Args:
      traced: the graph.
      rules: in the order in which they are asked.

    Returns:
      the operands by the operation's path, in program order.

    Raises:
      ValueError: for every rule that decides about nothing, and every format that an operand has not the axes for.
    """
    rules = rules_of(rules)
    found = origins(traced)
    hidden = [e.path for e in traced.equations() if e.primitive in ("custom_jvp_call", "custom_vjp_call")]
    loops = {e.path: e.params["length"] for e in traced.equations() if e.primitive == "scan"}
    decided: dict[CallPath, tuple[Operand, ...]] = {}
    matched, used = set[int](), set[int]()
    with collect("The rules do not fit the graph") as problems:
        for eqn in traced.equations():
            if eqn.primitive not in OPERANDS:
                continue
            given = operand_origins(found, eqn)
            leaves = sorted(frozenset().union(*(origin or () for origin in given)))
            operands = []
            for argument, aval, origin in zip(OPERANDS[eqn.primitive], eqn.in_avals, given):
                operand = Operand(
                    operation=traced.names[eqn.path],
                    primitive=eqn.primitive,
                    argument=argument,
                    kind="activation" if origin is None else "weight",
                    leaves=tuple(sorted(origin or ())),
                    shape=tuple(aval.shape),
                    loops=tuple(length for path, length in loops.items() if eqn.path[: len(path)] == path),
                )
                speaking = [i for i, rule in enumerate(rules) if rule.matches(operand, eqn, leaves)]
                matched.update(speaking)
                used.update(speaking[:1])
                operands.append(_decided(operand, eqn, rules, speaking, hidden, problems))
            decided[eqn.path] = tuple(operands)
        for index, rule in enumerate(rules):
            if index not in used:
                problems.append(_idle(traced, index, rule, index in matched, decided))
    return decided


def rules_of(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """Return one rule or several as a tuple.

    Raises:
      TypeError: for what is no rule.
      ValueError: if there are none.
    """
    several = (rules,) if isinstance(rules, Rule) else tuple(rules)
    if not several:
        raise ValueError("rules: at least one is needed, e.g. Rule(quantizer=Dynamic(Uniform(8))).")
    for rule in several:
        if not isinstance(rule, Rule):
            raise TypeError(f"rules must be of the class Rule, e.g. Rule(quantizer=Dynamic(Uniform(8))); got {rule!r}.")
    return several


def _decided(
    operand: Operand,
    eqn: Equation,
    rules: Sequence[Rule],
    speaking: Sequence[int],
    hidden: Sequence[CallPath],
    problems: list[str],
) -> Operand:
    place = OPERANDS[eqn.primitive].index(operand.argument)
    if not jnp.issubdtype(eqn.in_avals[place].dtype, jnp.floating):
        return dataclasses.replace(operand, reason=f"is {eqn.in_avals[place].dtype}")
    if not speaking:
        return dataclasses.replace(operand, reason="no rule matches")
    rule, index = rules[speaking[0]], speaking[0]
    quantizer = rule.quantizer
    if quantizer is None:
        return dataclasses.replace(operand, rule=index, reason="its rule leaves it as it is")
    if any(eqn.path[: len(path)] == path for path in hidden):
        return dataclasses.replace(operand, rule=index, reason="stands in a function with a derivative rule of its own")
    static = has_site(quantizer)
    if static and eqn.times is None:
        return dataclasses.replace(
            operand, rule=index, reason="stands in a while loop, which has no place for calibrated ranges"
        )
    where = f"{operand.operation} {operand.argument}"
    axes = summed_axes(eqn, place) if rule.free_axes else None
    wrong = layout.problem(operand.shape, quantizer.format) if axes is None else None
    if wrong is not None:
        problems.append(f"{where}: {wrong}")
    if axes is not None and static and operand.kind == "activation":
        problems.append(
            f"{where}: free_axes has a scale for each example, which cannot be calibrated; rule {index} must have Dynamic"
        )
    if axes is not None and quantizer.format.group_size is not None:
        problems.append(f"{where}: free_axes takes the place of groups; leave one of them out of rule {index}")
    if axes is not None and isinstance(quantizer, Dynamic):
        quantizer = dataclasses.replace(quantizer, axes=axes)
    return dataclasses.replace(operand, rule=index, quantizer=quantizer, axes=axes)


def summed_axes(eqn: Equation, place: int) -> tuple[int, ...]:
    """Return the axes of an operand that may share a scale at most: those that the operation sums over.

    Args:
      eqn: a dot, a convolution or a gather.
      place: of the operand.
    """
    params, ndim = eqn.params, len(eqn.in_avals[place].shape)
    if eqn.primitive == "dot_general":
        return tuple(params["dimension_numbers"][0][place])
    if eqn.primitive == "gather":
        return tuple(axis for axis in range(ndim) if axis not in params["dimension_numbers"].start_index_map)
    numbers = params["dimension_numbers"]
    free = (numbers.lhs_spec[0], numbers.rhs_spec[0])[place]
    if place == 0 and params["batch_group_count"] != 1:
        return tuple(range(ndim))
    return tuple(axis for axis in range(ndim) if axis != free)


def _idle(traced: Traced, index: int, rule: Rule, matched: bool, decided: Mapping[Any, Sequence[Operand]]) -> str:
    if matched:
        return f"rule {index}, {_short(rule)}: earlier rules decide about all that it matches. Put it before them."
    equations = [eqn for eqn in traced.equations() if eqn.primitive in OPERANDS]
    leaves = sorted({leaf for operands in decided.values() for operand in operands for leaf in operand.leaves})
    where = f" Parameters in them: {', '.join(leaves) or 'none'}." if rule.path else ""
    names = f" Names: {', '.join(traced.names[eqn.path] for eqn in equations)}." if rule.names else ""
    return f"rule {index}, {_short(rule)}: matches nothing in {traced.name}. {there_is(traced, equations)}{where}{names}"


def _short(rule: Rule) -> str:
    """The rule, with what is not by default."""
    said = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule) if field.name != "quantizer"}
    default = Rule(quantizer=None)
    return f"Rule({', '.join(f'{name}={value!r}' for name, value in said.items() if value != getattr(default, name))})"


def first_and_last(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> tuple[str, ...]:
    """Return the names of the first and the last dot or convolution with a weight, in the order in which they run.

    They see the raw inputs and make the outputs, and lose most by few bits: leave them out, or at 8 bits, by a `Rule` with
    these `names` before the others.

    Args:
      apply: as for `quantize_activations`.
      variables: shapes and dtypes will do.
      *inputs: likewise.
      **static: keywords of `apply`.

    Raises:
      ValueError: if there is none.

    Example:
      >>> def apply(v, x):
      ...     return jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"]
      >>> square = jnp.eye(2)
      >>> first_and_last(apply, {"a": square, "b": square, "c": square}, jnp.ones((1, 2)))
      ('dot_general', 'dot_general_2')
    """
    traced = trace(apply, variables, *inputs, **static)
    found = origins(traced)
    names = [
        traced.names[eqn.path]
        for eqn in traced.equations()
        if eqn.primitive in ("dot_general", "conv_general_dilated") and any(operand_origins(found, eqn))
    ]
    if not names:
        raise ValueError(f"first_and_last: {traced.name} has no dot or convolution with a weight.")
    return tuple(dict.fromkeys((names[0], names[-1])))


def unseen(traced: Traced) -> tuple[str, ...]:
    """Return the operations that hold computations which cannot be looked into."""
    return tuple(traced.names[eqn.path] for eqn in traced.equations() if _compat.is_opaque(eqn.raw))
