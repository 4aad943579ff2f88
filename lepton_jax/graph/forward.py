"""One forward pass over a graph, for any analysis: what is known of a value, from what is known of those it is made of."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from lepton_jax.graph import _compat
from lepton_jax.graph.trace import CallPath, Equation, equations_of

T = TypeVar("T")


class Forward(Generic[T]):
    """Goes through a graph operation by operation and keeps what is known of every value.

    An analysis says what is known of a `constant`, what an `operation` makes of what is known of its operands, and how a `call`
    (or loop, or choice) is gone into, by `inside`.

    Attributes:
      found: what is known, by (path of the jaxpr, variable in it). The path is part of the key: two calls may share one jaxpr.
      constants: what is known of the constants of the jaxpr at every path.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> class Depth(Forward[int]):
      ...     def constant(self, value):
      ...         return 0
      ...
      ...     def operation(self, eqn, given):
      ...         return [1 + max(given)] * len(eqn.outvars)
      >>> graph = trace(lambda v, x: jnp.exp(x @ v["w"]), {"w": jnp.ones((3, 2))}, jnp.ones((5, 3)))
      >>> Depth().body(graph.jaxpr, graph.consts, [0, 0])
      [2]
    """

    def __init__(self) -> None:
        self.found: dict[tuple[CallPath, Any], T] = {}
        self.constants: dict[CallPath, tuple[T, ...]] = {}

    def constant(self, value: Any) -> T:
        """What is known of a value that is written into the program."""
        raise TypeError(f"{type(self).__name__} does not say what is known of constants")

    def operation(self, eqn: Equation, given: list[T]) -> Sequence[T]:
        """What is known of the results of an operation that holds no others."""
        raise TypeError(f"{type(self).__name__} does not say what is known of operations")

    def call(self, eqn: Equation, given: list[T]) -> Sequence[T]:
        """What is known of the results of a call, a loop or a choice; here of a plain call."""
        [body] = eqn.bodies
        return self.inside(eqn, body, given)

    def inside(self, eqn: Equation, body: _compat.Body, given: Sequence[T]) -> list[T]:
        """Go through the body of a call; return what is known of its outputs."""
        times = None if eqn.times is None or body.times is None else eqn.times * body.times
        return self.body(body.jaxpr, body.consts, given, (*eqn.path, body.label), eqn.scope, times)

    def body(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        given: Sequence[T],
        path: CallPath = (),
        scope: str = "",
        times: int | None = 1,
    ) -> list[T]:
        """Go through a jaxpr, found at `path`, given what is known of its inputs; return what is known of its outputs."""
        # One list, because an open jaxpr of jax 0.11 counts its constvars among its invars.
        self.constants[path] = tuple(map(self.constant, consts))
        known = [*self.constants[path], *given]
        self.found.update(((path, var), one) for var, one in zip([*jaxpr.constvars, *jaxpr.invars], known))
        for eqn in equations_of(jaxpr, path, scope, times):
            operands = [self.known(path, atom) for atom in eqn.invars]
            results = self.call(eqn, operands) if eqn.bodies else self.operation(eqn, operands)
            self.found.update(((path, var), result) for var, result in zip(eqn.outvars, results))
        return [self.known(path, atom) for atom in jaxpr.outvars]

    def known(self, path: CallPath, atom: Any) -> T:
        """What is known of a literal, or of a variable of the jaxpr at `path`."""
        return self.constant(_compat.literal_value(atom)) if _compat.is_literal(atom) else self.found[path, atom]
