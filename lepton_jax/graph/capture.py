"""Capturing intermediate values of a model, without editing it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.matching import fits_end, patterns_of
from lepton_jax.graph.trace import Apply, CallPath, Equation, Traced, trace

SelectValue = str | Sequence[str] | Callable[[str, Equation], bool]
"""Which values: glob pattern(s) over modules, operations and primitives, or a predicate ``(name, operation) -> bool``."""

Places = dict[CallPath, list[tuple[str, int]]]
"""Where the values come from: path of an operation -> (name of the value, index of the result)."""


class _Capture(Interpreter):
    def __init__(self, traced: Traced, places: Places):
        super().__init__(traced)
        self.places = places

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        wanted = self.places.get(eqn.path)
        if wanted is None:
            return None
        outs = self.default(eqn, values)
        for name, index in wanted:
            self.emit(name, outs[index])
        return outs


@checked
def capture(apply: Apply, select: SelectValue) -> Callable[..., tuple[PyTree, dict[str, Any]]]:
    """Return a function that gives intermediate values of `apply` beside its outputs.

    A pattern names, by their scopes, modules (``'Conv_0'``, ``'*/Dense_*'``; the value is what the module returns) or
    operations (``'Conv_0/conv_general_dilated'``, or a primitive, ``'dot_general'``). It is held against the whole name
    and against every end of it, so the outermost module need not be written. A module called again is ``'Dense_0_1'``; of
    two calls with nothing between them, only the second one's value is had. A module that returns several arrays gives
    ``'LSTM_0'``, ``'LSTM_0.1'``, ...

    Values from inside a scan are stacked along a leading axis, and those from inside a `shard_map` too, a slice for each
    device, in the order of the mesh; those of a branch of `jax.lax.cond` that was not taken are zero. Out of a
    `jax.lax.while_loop` or a function with a derivative rule of its own nothing can be handed; capture the loop or the
    call. The function works under jit, grad and vmap; call it under jit.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      select: glob pattern(s), or a predicate ``(name, operation) -> bool`` over operations.

    Returns:
      function of the same arguments that returns ``(outputs, {name: value})``.

    Raises:
      TypeError: when called, for a selection that is neither.
      ValueError: when called, if a pattern matches nothing; the message lists what there is.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def apply(variables, x):
      ...     with jax.named_scope("hidden"):
      ...         h = jnp.maximum(x @ variables["w"], 0)
      ...     return h.sum()
      >>> y, values = capture(apply, "hidden")({"w": jnp.array([[1.0, -1.0]])}, jnp.ones((1, 1)))
      >>> float(y), {name: value.tolist() for name, value in values.items()}
      (1.0, {'hidden': [[1.0, 0.0]]})
    """

    @wraps(apply)
    def captured(variables: PyTree, *inputs: Any, **static: Any) -> tuple[PyTree, dict[str, Any]]:
        traced = trace(apply, variables, *inputs, **static)
        interpreter = _Capture(traced, places(traced, select))
        return interpreter(variables, *inputs, **static), interpreter.emitted

    return captured


def places(traced: Traced, select: SelectValue) -> Places:
    """Where the selected values of a graph come from.

    Args:
      traced: the graph.
      select: as for `capture`.

    Raises:
      ValueError: if a pattern matches nothing.
    """
    modules = _modules(traced)
    operations = {traced.names[eqn.path]: eqn for eqn in _visible(traced)}
    found: Places = {}
    for one in (select,) if callable(select) else patterns_of("capture: select", select):
        chosen = _chosen(one, modules, operations)
        if not chosen:
            wanted = getattr(one, "__name__", one)
            primitives = sorted({eqn.primitive for eqn in operations.values()})
            raise ValueError(
                f"select={wanted!r} matches no value of {traced.name}. Modules: {', '.join(modules) or 'none'}. Operations: "
                f"{', '.join(primitives)}. Write a glob over these, e.g. '*/Dense_0' or 'dot_general'."
            )
        for name, (path, index) in chosen.items():
            if (name, index) not in found.setdefault(path, []):
                found[path].append((name, index))
    return found


def _chosen(
    select: str | Callable[[str, Equation], bool],
    modules: Mapping[str, tuple[CallPath, int]],
    operations: Mapping[str, Equation],
) -> dict[str, tuple[CallPath, int]]:
    if callable(select):
        return _results({name: eqn for name, eqn in operations.items() if select(name, eqn)})
    chosen = {name: place for name, place in modules.items() if fits_end(select, name)}
    if chosen:
        return chosen
    return _results({name: eqn for name, eqn in operations.items() if fits_end(select, name) or eqn.primitive == select})


def _results(operations: Mapping[str, Equation]) -> dict[str, tuple[CallPath, int]]:
    return {_numbered(name, i): (eqn.path, i) for name, eqn in operations.items() for i in range(len(eqn.outvars))}


def _numbered(name: str, index: int) -> str:
    return f"{name}.{index}" if index else name


def _visible(traced: Traced) -> Iterator[Equation]:
    """The operations whose values can be had: not those within derivative rules and functions that have one."""
    hidden: CallPath | None = None
    for eqn in traced.equations():
        if hidden is not None and eqn.path[: len(hidden)] == hidden:
            continue
        hidden = eqn.path if eqn.primitive in ("custom_jvp_call", "custom_vjp_call") else None
        yield eqn


def _modules(traced: Traced) -> dict[str, tuple[CallPath, int]]:
    """Every module call's returned arrays: name -> (path of the operation, index of the result)."""
    levels: dict[CallPath, list[Equation]] = {}
    ends: dict[CallPath, tuple[Any, str]] = {(): (traced.jaxpr, "")}
    for eqn in _visible(traced):
        levels.setdefault(eqn.jaxpr_path, []).append(eqn)
        for body in eqn.bodies:
            ends[(*eqn.path, body.label)] = (body.jaxpr, eqn.scope)
    seen: Counter[str] = Counter()
    modules: dict[str, tuple[CallPath, int]] = {}
    for path, equations in levels.items():
        jaxpr, outer = ends[path]
        updates = set(traced.updates) if path == () else set()
        outs = {v for i, v in enumerate(jaxpr.outvars) if not _compat.is_literal(v) and i not in updates}
        for scope, run in _runs(equations, outer):
            inside = {id(eqn) for eqn in run}
            used = {v for eqn in equations if id(eqn) not in inside for v in eqn.invars if not _compat.is_literal(v)} | outs
            leaving = [(eqn.path, i) for eqn in run for i, v in enumerate(eqn.outvars) if v in used]
            if leaving:
                name = scope if not seen[scope] else f"{scope}_{seen[scope]}"
                seen[scope] += 1
                modules.update({_numbered(name, i): place for i, place in enumerate(leaving)})
    return modules


def _runs(equations: Sequence[Equation], outer: str) -> Iterator[tuple[str, list[Equation]]]:
    """Every unbroken run of operations in a scope below `outer`, with that scope."""
    open_runs: dict[str, list[Equation]] = {}
    for eqn in equations:
        below = eqn.scope[len(outer) :].strip("/")
        parts = below.split("/") if below else []
        scopes = ["/".join(([outer] if outer else []) + parts[: n + 1]) for n in range(len(parts))]
        for scope in [scope for scope in open_runs if scope not in scopes]:
            yield scope, open_runs.pop(scope)
        for scope in scopes:
            open_runs.setdefault(scope, []).append(eqn)
    yield from open_runs.items()
