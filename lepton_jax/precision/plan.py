"""Planning a graph in mixed precision: which operation runs how, and which of them make one stretch in float32."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from lepton_jax.graph import _compat
from lepton_jax.graph.trace import CallPath, Equation, join, walk
from lepton_jax.precision.rules import COMPARE, EXACT, LINEAR, Kind, is_wide

Classify = Callable[[Equation], tuple[Kind, str]]
Mode = Literal["compute", "narrow", "wide", "as is", "call"]
State = Literal["narrow", "wide", "free"]
_INLINED = ("jit", "pjit", "closed_call", "core_closed_call", "core_call", "call", "eval_jaxpr")


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
    held: dict[Value, Any] = {}
    nodes, outputs = _flatten(jaxpr, consts, path, scope, inputs, held, ())
    _demand(nodes, outputs, wanted_wide, classify)
    stretches = _stretches(nodes, classify)
    _borders(stretches, outputs)
    return Plan(stretches, inputs, held, outputs)


def is_followed(eqn: Equation, classify: Classify) -> bool:
    """Whether a function with a derivative rule of its own does only what may be done in any dtype (relu)."""
    [body] = eqn.bodies
    inner = walk(body.jaxpr, (*eqn.path, body.label), eqn.scope)
    return all(one.primitive in _INLINED or classify(one)[0] in ("follow", "exact") for one in inner)


def has_dots(eqn: Equation, classify: Classify) -> bool:
    """Whether an operation within a call runs in the compute dtype."""
    return any(
        classify(one)[0] == "compute" for body in eqn.bodies for one in walk(body.jaxpr, (*eqn.path, body.label), eqn.scope)
    )


def _is_plain_call(eqn: Equation) -> bool:
    if eqn.primitive not in _INLINED or len(eqn.bodies) != 1:
        return False
    placed = (*(eqn.params.get("in_shardings") or ()), *(eqn.params.get("out_shardings") or ()))
    return not any(isinstance(one, jax.sharding.Sharding) for one in placed)


def _flatten(
    jaxpr: Any,
    consts: Sequence[Any],
    path: CallPath,
    scope: str,
    inputs: Sequence[Value],
    held: dict[Value, Any],
    around: tuple[Any, ...],
) -> tuple[list[Node], list[Value]]:
    # One list, because an open jaxpr of jax 0.11 counts its constvars among its invars.
    constants = [Value(jax.typeof(const)) for const in consts]
    held.update(zip(constants, consts))
    env: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs]))

    def value(atom: Any) -> Value:
        if _compat.is_literal(atom):
            return Value(_compat.aval(atom), literal=_compat.literal_value(atom))
        return env[atom]

    nodes: list[Node] = []
    for index, raw in enumerate(jaxpr.eqns):
        eqn = Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)))
        ins = [value(atom) for atom in raw.invars]
        if _is_plain_call(eqn):
            [body] = eqn.bodies
            inner, outs = _flatten(body.jaxpr, body.consts, (*eqn.path, body.label), eqn.scope, ins, held, (*around, raw))
            nodes += inner
        else:
            outs = [Value(_compat.aval(var)) for var in raw.outvars]
            nodes.append(Node(eqn, ins, outs, around))
        env.update(zip(raw.outvars, outs))
    return nodes, [value(atom) for atom in jaxpr.outvars]


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


def _wants(node: Node, classify: Classify) -> Iterator[bool]:
    """Whether the operation uses each operand in float32, given how its own results are used."""
    eqn = node.eqn
    results = [out.demanded for out in node.outs if out.wide_as_traced]
    everything = bool(results) and all(results)
    match eqn.primitive:
        case "scan":
            n_consts, n_carry = _compat.scan_counts(eqn.raw)
            return iter(n_consts <= i < n_consts + n_carry for i in range(len(node.ins)))
        case "while":
            return iter([True] * len(node.ins))
        case "cond":
            return iter([False] * len(node.ins))
        case "remat2" | "checkpoint":
            [body] = eqn.bodies
            inputs = [Value(_compat.aval(atom)) for atom in eqn.invars]
            path = (*eqn.path, body.label)
            inner, outs = _flatten(body.jaxpr, body.consts, path, eqn.scope, inputs, {}, ())
            _demand(inner, outs, [out.demanded for out in node.outs], classify)
            return iter([value.demanded for value in inputs])
        case "custom_jvp_call":
            return iter([everything or not is_followed(eqn, classify)] * len(node.ins))
        case "custom_vjp_call":
            return iter([not has_dots(eqn, classify)] * len(node.ins))
    if eqn.bodies:
        return iter([False] * len(node.ins))
    kind, _ = classify(eqn)
    # A comparison or an integer made of a value is as good as that value is.
    return iter([kind == "float32" or (kind in ("follow", "exact") and (everything or not results))] * len(node.ins))


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
    eqn = node.eqn
    floats = [value for value in node.ins if value.wide_as_traced]
    results = [out for out in node.outs if out.wide_as_traced]
    demanded = bool(results) and all(out.demanded for out in results)
    if eqn.bodies:
        _choose_call(node, classify, demanded)
        return
    kind, node.reason = classify(eqn)
    states = {value.state for value in floats}
    if kind == "compute":
        node.mode = "compute" if floats else "as is"
        _set(results, "narrow" if floats else "free")
    elif kind == "float32":
        node.mode = "wide" if floats else "as is"
        _set(results, "wide" if floats else "free")
    elif kind == "exact":
        node.mode = "as is"
        state: State = "wide" if "wide" in states else "narrow" if "narrow" in states else "free"
        _set(results, state, any(value.rounded for value in floats) and not demanded)
        for out in results:
            # A constant stays one: it is looked at before it is rounded.
            out.literal = node.ins[0].literal if len(node.ins) == 1 and eqn.primitive == "broadcast_in_dim" else None
    elif demanded and states & {"narrow", "wide"}:
        node.mode = "wide"
        node.reason += ", all that uses it is float32"
        _set(results, "wide")
    elif "wide" in states:
        node.mode = "wide"
        node.reason += ", meets float32"
        _set(results, "wide", True)
    elif "narrow" in states:
        node.mode = "narrow"
        _set(results, "narrow")
    else:
        node.mode = "as is"
        _set(results, "free")


def _choose_call(node: Node, classify: Classify, demanded: bool) -> None:
    eqn = node.eqn
    results = [out for out in node.outs if out.wide_as_traced]
    narrow = any(value.state == "narrow" for value in node.ins if value.wide_as_traced)
    node.mode = "call"
    match eqn.primitive:
        case "custom_jvp_call":
            node.reason = "has a derivative rule of its own"
            wide = any(value.state == "wide" for value in node.ins if value.wide_as_traced)
            if not is_followed(eqn, classify):
                node.mode = "wide"
                _set(results, "wide")
            elif wide or demanded or not narrow:
                node.mode = "wide"
                _set(results, "wide" if wide or narrow else "free", (wide or narrow) and not demanded)
            else:
                _set(results, "narrow")
        case "custom_vjp_call":
            node.reason = "has a derivative rule of its own"
            if has_dots(eqn, classify):
                _set(results, "free" if demanded else "narrow")
            else:
                node.mode = "wide"
                _set(results, "free")
        case "remat2" | "checkpoint":
            node.reason = "looked into"
            for out in results:
                out.state = "free" if out.demanded else "narrow"
        case _:
            node.reason = "looked into; its results keep their dtype"
            _set(results, "free")


def _set(values: Sequence[Value], state: State, rounded: bool = False) -> None:
    for value in values:
        value.state, value.rounded = state, rounded


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
    return name in LINEAR or name in COMPARE or (name in EXACT and not node.outs[0].wide_as_traced)
