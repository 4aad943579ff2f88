"""Where values come from: which of them depend on variables alone, and on which."""

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Path
from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.trace import CallPath, Equation, Traced

Origin = frozenset[Path] | None
"""The paths of the variables that a value is computed from (none for a constant), or None if an input plays a part."""

Origins = Mapping[tuple[CallPath, Any], Origin]
"""(path of the jaxpr, variable in it) -> origin."""

# Their results are not the model's: drawn anew each time, or from outside.
SOURCES = ("random_seed", "rng_uniform", "rng_bit_generator", "infeed", "io_callback", "pure_callback")


@checked
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
    paths = (*traced.variables, *(None for _ in traced.inputs))
    given = [None if path is None or path in inputs else frozenset([path]) for path in paths]
    search = _Origins()
    search.body(traced.jaxpr, traced.consts, given)
    return search.found


def unread(traced: Traced) -> tuple[Path, ...]:
    """Return the variables that no result depends on, but for their own updated state, if that is what they were.

    Such are auxiliary heads in evaluation mode, and moving averages that only training moves.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> variables = {"w": jnp.ones((2, 3)), "aside": jnp.ones(3), "old": jnp.ones(3)}
      >>> def apply(v, x):
      ...     aside = x @ v["w"] + v["aside"]
      ...     return x @ v["w"], {"old": v["old"]}
      >>> unread(trace(apply, variables, jnp.ones(2)))
      ('aside', 'old')
    """
    entering = {path: v for v, path in zip(traced.jaxpr.invars, traced.variables)}
    outs = enumerate(traced.jaxpr.outvars)
    used = _compat.used_inputs(traced.jaxpr, [entering.get(traced.updates.get(index, "")) is not v for index, v in outs])
    return tuple(path for path, is_used in zip(traced.variables, used) if not is_used)


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


class _Origins(Forward[Origin]):
    def constant(self, value: Any) -> Origin:
        return frozenset()

    def operation(self, eqn: Equation, given: list[Origin]) -> list[Origin]:
        return [None if eqn.primitive in SOURCES else together(given)] * len(eqn.outvars)

    def call(self, eqn: Equation, given: list[Origin]) -> list[Origin]:
        """Those in the bodies, and for a loop or a choice what steers it."""
        results: list[Origin] = [frozenset()] * len(eqn.outvars)
        steering: Origin = given[0] if eqn.primitive == "cond" else frozenset()
        for body in eqn.bodies:
            entering = [given[i] for i in body.operands]
            while True:
                leaving = self.inside(eqn, body, entering)
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
