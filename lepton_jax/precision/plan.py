"""Planning a graph in mixed precision: which operation runs how, and which of them make one stretch in float32."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.primitives import COMPARISONS, PLAIN_CALLS, REMATS
from lepton_jax.graph.trace import CallPath, Equation, walk
from lepton_jax.precision.rules import EXACT, LINEAR, Kind, is_wide

Classify = Callable[[Equation], tuple[Kind, str]]
Mode = Literal["compute", "narrow", "wide", "as is", "call"]
State = Literal["narrow", "wide", "free"]


@dataclass(eq=False)
class Value:
    """A value of the graph, with what the plan knows of it.

    ``state``: "narrow", in the compute dtype; "wide", from an operation that runs in float32; "free", neither (a parameter,
    an input and what was made of them alone), to be rounded where it meets a narrow value.
    """

    aval: Any
    literal: Any = None
    demanded: bool = False
    """Every use of it runs in float32."""
    used: bool = False
    state: State = "free"
    rounded: bool = False
    """It is rounded to the compute dtype where it leaves its stretch."""

    @property
    def wide_as_traced(self) -> bool:
        return is_wide(self.aval)


@dataclass(eq=False)
class Node:
    """An operation, with its operands and results in the flat graph, and how it is run."""

    eqn: Equation
    ins: list[Value]
    outs: list[Value]
    around: tuple[Any, ...]
    mode: Mode = "as is"
    reason: str = ""


@dataclass(eq=False)
class Stretch:
    """Operations that follow each other and run in float32; one that runs otherwise is a stretch of its own."""

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    leaving: list[Value] = field(default_factory=list)

    @property
    def is_linear(self) -> bool:
        """Whether its derivative needs none of its values."""
        return not any(node.mode == "wide" and not _is_linear(node) for node in self.nodes)


@dataclass(eq=False)
class Plan:
    """A jaxpr, its plain calls inlined, as stretches in program order."""

    stretches: list[Stretch]
    inputs: list[Value]
    consts: dict[Value, Any]
    outputs: list[Value]


def make_plan(
    jaxpr: Any,
    consts: Sequence[Any],
    path: CallPath,
    scope: str,
    narrow_inputs: Sequence[bool],
    wanted_wide: Sequence[bool],
    classify: Classify,
) -> Plan:
    """Plan a jaxpr.

    Args:
      jaxpr: with its constvars' values in `consts`; it stands at `path` in `scope`.
      consts: those values.
      path: see `Equation`.
      scope: see `Equation`.
      narrow_inputs: which inputs are in the compute dtype.
      wanted_wide: which outputs are wanted in float32.
      classify: the rules.
    """
    variables = [*jaxpr.constvars, *jaxpr.invars][len(consts) :]
    inputs = [Value(_compat.aval(var), state="narrow" if narrow else "free") for var, narrow in zip(variables, narrow_inputs)]
    flat = Flat()
    outputs = flat.body(jaxpr, consts, inputs, path, scope)
    _demand(flat.nodes, outputs, wanted_wide, classify)
    stretches = _stretches(flat.nodes, classify)
    _borders(stretches, outputs)
    return Plan(stretches, inputs, flat.held, outputs)


def is_followed(eqn: Equation, classify: Classify) -> bool:
    """Whether a function with a derivative rule of its own does only what may be done in any dtype (relu)."""
    return all(one.primitive in PLAIN_CALLS or classify(one)[0] in ("follow", "exact") for one in _within(eqn))


def has_dots(eqn: Equation, classify: Classify) -> bool:
    """Whether an operation within a call runs in the compute dtype."""
    return any(classify(one)[0] == "compute" for one in _within(eqn))


def _within(eqn: Equation) -> Iterator[Equation]:
    for body in eqn.bodies:
        yield from walk(body.jaxpr, (*eqn.path, body.label), eqn.scope)


class Flat(Forward[Value]):
    """Every operation in one list, plain calls gone into; constants are held apart."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.held: dict[Value, Any] = {}
        self.around: tuple[Any, ...] = ()

    def constant(self, value: Any) -> Value:
        held = Value(jax.typeof(value))
        self.held[held] = value
        return held

    def known(self, path: CallPath, atom: Any) -> Value:
        if _compat.is_literal(atom):
            return Value(_compat.aval(atom), literal=_compat.literal_value(atom))
        return super().known(path, atom)

    def call(self, eqn: Equation, given: list[Value]) -> Sequence[Value]:
        if not eqn.is_plain_call:
            return self.operation(eqn, given)
        around, self.around = self.around, (*self.around, eqn.raw)
        results = super().call(eqn, given)
        self.around = around
        return results

    def operation(self, eqn: Equation, given: list[Value]) -> Sequence[Value]:
        outs = [Value(aval) for aval in eqn.out_avals]
        self.nodes.append(Node(eqn, given, outs, self.around))
        return outs


def _demand(nodes: Sequence[Node], outputs: Sequence[Value], wanted_wide: Sequence[bool], classify: Classify) -> None:
    """Mark the values whose every use runs in float32, from the end to the beginning."""
    for out, wide in zip(outputs, wanted_wide):
        _use(out, wide)
    for node in reversed(nodes):
        for operand, wide in zip(node.ins, _wants(node, classify)):
            _use(operand, wide)


def _use(value: Value, wide: bool) -> None:
    value.demanded = wide and (value.demanded or not value.used)
    value.used = True


def _wants(node: Node, classify: Classify) -> list[bool]:
    """Whether the operation uses each operand in float32, given how its own results are used."""
    eqn, count = node.eqn, len(node.ins)
    results = [out.demanded for out in node.outs if out.wide_as_traced]
    everything = bool(results) and all(results)
    if eqn.primitive == "scan":
        n_consts, n_carry = _compat.scan_counts(eqn.raw)
        return [n_consts <= i < n_consts + n_carry for i in range(count)]
    if eqn.primitive in REMATS:
        [body], flat = eqn.bodies, Flat()
        inputs = [Value(aval) for aval in eqn.in_avals]
        outs = flat.inside(eqn, body, inputs)
        _demand(flat.nodes, outs, [out.demanded for out in node.outs], classify)
        return [value.demanded for value in inputs]
    if eqn.primitive == "custom_jvp_call":
        return [everything or not is_followed(eqn, classify)] * count
    if eqn.primitive == "custom_vjp_call":
        return [not has_dots(eqn, classify)] * count
    if eqn.bodies:
        return [eqn.primitive == "while"] * count
    kind, _ = classify(eqn)
    # A comparison or an integer made of a value is as good as that value is.
    return [kind == "float32" or (kind in ("follow", "exact") and (everything or not results))] * count


def _stretches(nodes: Sequence[Node], classify: Classify) -> list[Stretch]:
    stretches: list[Stretch] = []
    open_stretch: Stretch | None = None

    def close() -> None:
        nonlocal open_stretch
        for node in open_stretch.nodes if open_stretch else ():
            for out in node.outs:
                if out.rounded:
                    out.state = "narrow"
        open_stretch = None

    for node in nodes:
        _choose(node, classify)
        if node.mode == "wide":
            if open_stretch is None:
                open_stretch = Stretch()
                stretches.append(open_stretch)
            open_stretch.nodes.append(node)
        elif node.mode == "as is" and open_stretch is not None:
            open_stretch.nodes.append(node)
        elif node.mode == "as is":
            stretches.append(Stretch([node]))
        else:
            # What the stretch hands on is narrow from here: choose anew.
            close()
            _choose(node, classify)
            if node.mode == "wide":
                open_stretch = Stretch([node])
            stretches.append(open_stretch or Stretch([node]))
    close()
    return stretches


def _choose(node: Node, classify: Classify) -> None:
    """Set how a node is run and what its results are, from its operands' states."""
    results = [out for out in node.outs if out.wide_as_traced]
    states = {value.state for value in node.ins if value.wide_as_traced}
    demanded = bool(results) and all(out.demanded for out in results)
    if node.eqn.primitive in REMATS:
        node.mode, node.reason = "call", "looked into"
        for out in results:
            out.state = "free" if out.demanded else "narrow"
        return
    choose = _of_call if node.eqn.bodies else _of_operation
    node.mode, node.reason, state, rounded = choose(node, classify, states, demanded)
    for out in results:
        out.state, out.rounded = state, rounded


def _of_operation(node: Node, classify: Classify, states: set[State], demanded: bool) -> tuple[Mode, str, State, bool]:
    """(mode, reason, state of the results, whether they are rounded on leaving the stretch)."""
    kind, reason = classify(node.eqn)
    if kind == "exact":
        for out in node.outs:
            # A constant stays one: it is looked at before it is rounded.
            spread = len(node.ins) == 1 and node.eqn.primitive == "broadcast_in_dim" and out.wide_as_traced
            out.literal = node.ins[0].literal if spread else None
        state: State = "wide" if "wide" in states else "narrow" if "narrow" in states else "free"
        return "as is", reason, state, any(value.rounded for value in node.ins if value.wide_as_traced) and not demanded
    if not states:
        return "as is", reason, "free", False
    if kind == "compute":
        return "compute", reason, "narrow", False
    if kind == "float32":
        return "wide", reason, "wide", False
    if demanded and states != {"free"}:
        return "wide", f"{reason}, all that uses it is float32", "wide", False
    if "wide" in states:
        return "wide", f"{reason}, meets float32", "wide", True
    return ("narrow", reason, "narrow", False) if "narrow" in states else ("as is", reason, "free", False)


def _of_call(node: Node, classify: Classify, states: set[State], demanded: bool) -> tuple[Mode, str, State, bool]:
    eqn, own = node.eqn, "has a derivative rule of its own"
    if eqn.primitive == "custom_vjp_call":
        if has_dots(eqn, classify):
            return "call", own, "free" if demanded else "narrow", False
        return "wide", own, "free", False
    if eqn.primitive != "custom_jvp_call":
        return "call", "looked into; its results keep their dtype", "free", False
    if not is_followed(eqn, classify):
        return "wide", own, "wide", False
    if "narrow" in states and "wide" not in states and not demanded:
        return "call", own, "narrow", False
    known = states - {"free"}
    return "wide", own, "wide" if known else "free", bool(known) and not demanded


def _borders(stretches: Sequence[Stretch], outputs: Sequence[Value]) -> None:
    """Find what every stretch takes from outside, and what of it is used outside."""
    reader: dict[Value, set[int]] = {}
    for number, stretch in enumerate(stretches):
        for node in stretch.nodes:
            for value in node.ins:
                reader.setdefault(value, set()).add(number)
    for value in outputs:
        reader.setdefault(value, set()).add(len(stretches))
    for number, stretch in enumerate(stretches):
        made = {out: None for node in stretch.nodes for out in node.outs}
        taken = {value: None for node in stretch.nodes for value in node.ins if value not in made}
        # A literal of the graph has its value with it; one that went through an operation is a value of the graph.
        stretch.inputs = list(taken)
        stretch.leaving = [value for value in made if reader.get(value, set()) - {number}]


def _is_linear(node: Node) -> bool:
    name = node.eqn.primitive
    if name in ("mul", "div"):
        return any(value.literal is not None for value in (node.ins if name == "mul" else node.ins[1:]))
    return name in LINEAR or name in COMPARISONS or (name in EXACT and not node.outs[0].wide_as_traced)
