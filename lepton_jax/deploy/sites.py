"""Which values of a graph an engine has in eight bits.

Engines fuse what stands between roundings: so it is decided value by value, not operand by operand. Rounded are what weights
multiply, what convolutions give (after their bias and their rectifier), and both sides and the result of an addition of what
convolutions gave. Values that only move elements of a rounded one have its scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.origins import origins
from lepton_jax.graph.primitives import PRODUCTS, names
from lepton_jax.graph.trace import Equation, Traced, join

MOVES = names("reshape transpose squeeze expand_dims rev copy stop_gradient slice broadcast_in_dim reduce_window_max tile")
"""Their results are elements of their operand."""


class Grid(NamedTuple):
    """How a value is rounded: ``clip(round(x / scale) + zero_point, 0, 255)``.

    Attributes:
      scale: float32.
      zero_point: from 0 to 255.
    """

    scale: np.float32
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class Site:
    """A value in eight bits.

    Args:
      name: of the operation that makes it, or ``input_0``.
      of: the site whose scale it has; its own name, if it has one of its own.
      reason: why it is there.
    """

    name: str
    of: str
    reason: str


class Graph:
    """A graph in one piece, with what makes and what reads each value.

    Args:
      traced: of a function that is `inlined`.
    """

    def __init__(self, traced: Traced):
        self.traced = traced
        self.equations = [eqn for eqn in traced.equations() if len(eqn.path) == 1]
        self.makers: dict[Any, Equation] = {var: eqn for eqn in self.equations for var in eqn.outvars}
        self.uses: Counter[Any] = Counter(v for eqn in self.equations for v in eqn.invars if not _compat.is_literal(v))
        self.uses.update(v for v in traced.jaxpr.outvars if not _compat.is_literal(v))
        found = origins(traced)
        self.inputs = list(traced.jaxpr.invars[len(traced.variables) :])
        self._known = {var: origin is not None for (path, var), origin in found.items() if path == ()}
        self.names = self._names()

    def _names(self) -> dict[Any, str]:
        """A name for every operation that inputs play a part in.

        Others are not counted: where the batch has any length there are more of them, and names must be those of any trace.
        """
        counts: Counter[str] = Counter()
        found = {}
        for eqn in self.equations:
            if not all(map(self.is_constant, eqn.outvars)):
                base = join(eqn.scope, eqn.primitive)
                found[eqn.path] = f"{base}_{counts[base]}" if counts[base] else base
                counts[base] += 1
        return found

    def is_constant(self, atom: Any) -> bool:
        """Whether a value depends on variables alone."""
        return _compat.is_literal(atom) or self._known.get(atom, False)

    def name(self, var: Any) -> str:
        """The name of a value that does not depend on this trace."""
        if var in self.inputs:
            return f"input_{self.inputs.index(var)}"
        eqn = self.makers[var]
        index = list(eqn.outvars).index(var)
        return self.names[eqn.path] + (f":{index}" if index else "")

    def readers(self, var: Any) -> list[Equation]:
        """The operations that read a value."""
        return [eqn for eqn in self.equations if any(v is var for v in eqn.invars)]

    def is_weighted(self, eqn: Equation) -> bool:
        """Whether an operation multiplies a value by a weight, in float32."""
        if eqn.primitive not in PRODUCTS or eqn.out_avals[0].dtype != np.float32:
            return False
        x, weight = eqn.invars[:2]
        if self.is_constant(x) or not self.is_constant(weight):
            return False
        if eqn.primitive == "dot_general":
            return not eqn.params["dimension_numbers"][1][0]
        return eqn.params["batch_group_count"] == 1 and all(d == 1 for d in eqn.params["lhs_dilation"])

    def site_after(self, eqn: Equation, at: Mapping[Any, Site]) -> Site | None:
        """The site of a rectifier's result, or of what bounds it from above next."""
        var = eqn.outvars[0]
        if var in at or self.uses[var] != 1:
            return at.get(var)
        readers = self.readers(var)
        return at.get(readers[0].outvars[0]) if readers and readers[0].primitive == "min" and is_rectifier(readers[0]) else None

    def is_move(self, eqn: Equation) -> bool:
        """Whether the results are elements of a value that inputs play a part in, or zeros, which all codes have."""
        moves = eqn.primitive in MOVES or (eqn.primitive == "pad" and _is_zero(eqn.invars[1]))
        return moves and not self.is_constant(eqn.invars[0])

    def chain_end(self, var: Any) -> Any:
        """Follow a value through a bias and a rectifier, as far as nothing else reads what is between."""
        seen_bias = False
        while self.uses[var] == 1 and (readers := self.readers(var)):
            [eqn] = readers
            others = [v for v in eqn.invars if v is not var]
            constant = len(others) == len(eqn.invars) - 1 and all(map(self.is_constant, others))
            if not constant or not (is_rectifier(eqn) or (eqn.primitive == "add" and not seen_bias)):
                break
            if is_rectifier(eqn) and eqn.primitive != "max":
                return eqn.outvars[0]
            var, seen_bias = eqn.outvars[0], True
        return var


def is_rectifier(eqn: Equation) -> bool:
    """Whether an operation is ``max(x, 0)``, or has an upper bound too: what rounding to codes does by itself."""
    if eqn.primitive == "max":
        return any(_is_zero(v) for v in eqn.invars)
    return upper_bound(eqn) > 0 and (eqn.primitive == "min" or _is_zero(eqn.invars[0]))


def upper_bound(eqn: Equation) -> float:
    """The number that an operation bounds a value by; 0 if it does not."""
    if eqn.primitive not in ("min", "clamp"):
        return 0.0
    bounds = eqn.invars if eqn.primitive == "min" else eqn.invars[2:]
    numbers = [float(v.val) for v in bounds if _compat.is_literal(v) and np.ndim(v.val) == 0]
    return numbers[0] if len(numbers) == 1 else 0.0


def is_absorbed(eqn: Equation, grid: Grid) -> bool:
    """Whether rounding to codes of this range does by itself what a rectifier does."""
    upper = np.inf if eqn.primitive == "max" else upper_bound(eqn)
    return is_rectifier(eqn) and grid.zero_point == 0 and bool(254.5 * grid.scale <= upper)


def _is_zero(atom: Any) -> bool:
    return _compat.is_literal(atom) and np.ndim(atom.val) == 0 and float(atom.val) == 0


def find(traced: Traced) -> dict[str, Site]:
    """Return the sites of a graph in one piece, by the names of values.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lepton_jax.deploy.inlined import inlined
      >>> from lepton_jax.graph.trace import trace
      >>> apply = inlined(lambda v, x: jax.nn.relu(x @ v) @ v)
      >>> [(site.name, site.reason) for site in find(trace(apply, jnp.eye(2), jnp.ones((1, 2)))).values()]
      [('input_0', 'multiplied in dot_general'), ('max', 'multiplied in dot_general_1')]
    """
    graph = Graph(traced)
    sites: dict[str, Site] = {}
    from_convolutions: set[Any] = set()

    def put(var: Any, reason: str) -> None:
        chain = [var]
        while (eqn := graph.makers.get(chain[-1])) is not None and graph.is_move(eqn):
            chain.append(eqn.invars[0])
        base = chain[-1]
        if base.aval.dtype != np.float32:  # token ids, bytes
            return
        for one in reversed(chain):
            sites.setdefault(graph.name(one), Site(name=graph.name(one), of=graph.name(base), reason=reason))

    for eqn in graph.equations:
        if graph.is_weighted(eqn):
            put(eqn.invars[0], f"multiplied in {graph.names[eqn.path]}")
            if eqn.primitive == "conv_general_dilated":
                end = graph.chain_end(eqn.outvars[0])
                from_convolutions |= {eqn.outvars[0], end}
                put(end, f"given by {graph.names[eqn.path]}")
        elif graph.is_move(eqn) and eqn.invars[0] in from_convolutions:
            from_convolutions.add(eqn.outvars[0])
        elif is_residual(graph, eqn) and all(v in from_convolutions for v in eqn.invars):
            for var in eqn.invars:
                put(var, f"added in {graph.names[eqn.path]}")
            end = graph.chain_end(eqn.outvars[0])
            from_convolutions |= {eqn.outvars[0], end}
            put(end, f"given by {graph.names[eqn.path]}")
    return sites


def is_residual(graph: Graph, eqn: Equation) -> bool:
    """Whether an operation adds two values of one shape that inputs play a part in."""
    plain = eqn.primitive == "add" and not any(map(graph.is_constant, eqn.invars))
    return plain and eqn.in_avals[0].shape == eqn.in_avals[1].shape and eqn.out_avals[0].dtype == np.float32


def variables_of(graph: Graph, sites: Mapping[str, Site]) -> dict[Any, Site]:
    """The variables of the jaxpr that are at sites."""
    found = {}
    for var in [*graph.inputs, *(v for eqn in graph.equations for v in eqn.outvars if eqn.path in graph.names)]:
        site = sites.get(graph.name(var))
        if site is not None:
            found[var] = site
    return found
