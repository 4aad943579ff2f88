"""Where values come from: which of them depend on variables alone, and on which."""

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.core.typing import Path
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import CallPath, Equation, Traced, join

Origin = frozenset[Path] | None
"""The paths of the variables that a value is computed from (none for a constant), or None if an input plays a part."""

Origins = Mapping[tuple[CallPath, Any], Origin]
"""(path of the jaxpr, variable in it) -> origin. The path is part of the key: two calls may share one jaxpr."""

# Their results are not the model's: drawn anew each time, or from outside.
_SOURCES = ("random_seed", "rng_uniform", "rng_bit_generator", "infeed", "io_callback", "pure_callback")


def origins(traced: Traced, inputs: Sequence[Path] = ()) -> Origins:
    """Return the origin of every value in a graph.

    A value is *of variables alone* if it is computed, through whatever operations, from variables and constants: a reshaped,
    cast or normalised weight. It is then constant from call to call.

    Args:
      traced: the graph.
      inputs: paths of variables that are to count as inputs.

    Returns:
      the origins by (path of the jaxpr, variable).

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v["w"].T, {"w": jnp.ones((2, 3))}, jnp.ones((1, 3)))
      >>> [origin and sorted(origin) for origin in origins(graph).values()]
      [['w'], None, ['w'], None]
    """
    found: dict[tuple[CallPath, Any], Origin] = {}
    for var in traced.jaxpr.constvars:
        found[(), var] = frozenset()
    for index, var in enumerate(traced.jaxpr.invars):
        path = traced.variables[index] if index < len(traced.variables) else None
        found[(), var] = None if path is None or path in inputs else frozenset([path])
    _flow(found, traced.jaxpr, (), "")
    return found


def operand_origins(found: Origins, eqn: Equation) -> list[Origin]:
    """The origins of an operation's operands."""
    return [frozenset() if _compat.is_literal(v) else found[eqn.jaxpr_path, v] for v in eqn.invars]


def together(several: Sequence[Origin]) -> Origin:
    """The origin of a value that is computed from several."""
    union: frozenset[Path] = frozenset()
    for one in several:
        if one is None:
            return None
        union |= one
    return union


def _flow(found: dict[tuple[CallPath, Any], Origin], jaxpr: Any, path: CallPath, scope: str) -> None:
    for index, raw in enumerate(jaxpr.eqns):
        eqn = Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)))
        given = operand_origins(found, eqn)
        if not eqn.bodies:
            out = None if eqn.primitive in _SOURCES else together(given)
            results = [out] * len(eqn.outvars)
        else:
            results = _through(found, eqn, given)
        found.update({(path, v): result for v, result in zip(eqn.outvars, results)})


def _through(found: dict[tuple[CallPath, Any], Origin], eqn: Equation, given: list[Origin]) -> list[Origin]:
    """The origins of a call's results: those in its bodies, and for a loop or a choice what steers it."""
    results: list[Origin] = [frozenset()] * len(eqn.outvars)
    steering: Origin = given[0] if eqn.primitive == "cond" else frozenset()
    for body in eqn.bodies:
        inside = (*eqn.path, body.label)
        entering = [given[i] for i in body.operands]
        while True:
            found.update({(inside, v): frozenset() for v in body.jaxpr.constvars})
            found.update({(inside, v): origin for v, origin in zip(body.jaxpr.invars, entering)})
            _flow(found, body.jaxpr, inside, eqn.scope)
            leaving = [frozenset() if _compat.is_literal(v) else found[inside, v] for v in body.jaxpr.outvars]
            # What a loop carries round comes from its start and from its own last step.
            grown = list(entering)
            for out, into in body.carry:
                grown[into] = together([entering[into], leaving[out]])
            if grown == entering:
                break
            entering = grown
        for out, result in enumerate(body.results):
            results[result] = together([results[result], leaving[out]])
        if body.label == "cond" and eqn.primitive == "while":
            steering = together([*leaving, *entering])
    return [together([steering, result]) for result in results]
