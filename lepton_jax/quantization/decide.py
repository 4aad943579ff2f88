"""Deciding by rules about the operands of a graph."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import PyTree
from lepton_jax.formats import layout
from lepton_jax.graph import _compat
from lepton_jax.graph.matching import there_is
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.primitives import RAGGED
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, trace
from lepton_jax.quantization.quantizers import Dynamic
from lepton_jax.quantization.rules import OPERANDS, Operand, Rule, has_site, rules_of


def decide(traced: Traced, rules: Rule | Sequence[Rule]) -> dict[CallPath, tuple[Operand, ...]]:
    """Decide about every operand of every dot (ragged ones too), convolution and gather of a graph.

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
    decided: dict[CallPath, tuple[Operand, ...]] = {}
    matched, used = set[int](), set[int]()
    with collect("The rules do not fit the graph") as problems:
        for eqn in traced.equations():
            if eqn.primitive not in OPERANDS:
                continue
            given = operand_origins(found, eqn)
            leaves = sorted(frozenset().union(*(origin or () for origin in given)))
            operands, around = [], traced.stacks(eqn)
            for argument, aval, origin in zip(OPERANDS[eqn.primitive], eqn.in_avals, given):
                operand = Operand(
                    operation=traced.names[eqn.path],
                    primitive=eqn.primitive,
                    argument=argument,
                    kind="activation" if origin is None else "weight",
                    leaves=tuple(sorted(origin or ())),
                    shape=tuple(aval.shape),
                    loops=tuple(length for _, length in around),
                    devices=tuple(i for i, (primitive, _) in enumerate(around) if primitive == "shard_map"),
                )
                speaking = [i for i, rule in enumerate(rules) if rule.matches(operand, eqn, leaves, traced.variables)]
                matched.update(speaking)
                used.update(speaking[:1])
                operands.append(_decided(operand, eqn, rules, speaking, hidden, problems))
            decided[eqn.path] = tuple(operands)
        for index, rule in enumerate(rules):
            if index not in used:
                problems.append(_idle(traced, index, rule, index in matched, decided))
    return decided


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
    if eqn.primitive in RAGGED:
        return tuple(params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][place])
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


@checked
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
