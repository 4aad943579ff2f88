"""Which operations read a leaf, as what, and which of its axes is which: one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lepton_jax.core.typing import Path
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.primitives import INLINED, PRODUCTS, RAGGED, names
from lepton_jax.graph.strided import Strided, by_kind, kinds_of_axes
from lepton_jax.graph.trace import Equation, Traced

Kind = Literal["weight", "look-up", "bias", "scale", "statistic", "other", "unseen", "unread"]

_ADDED, _SCALED = names("add sub add_any"), names("mul div pow integer_pow")
_ROOTS = names("rsqrt sqrt exp log tanh logistic")


def reads(traced: Traced) -> dict[Path, list[Read]]:
    """Return, by path, the operations that read each leaf of the variables; leaves that none reads are missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v["w"] + v["b"][None], {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((5, 3)))
      >>> {path: [read.kind for read in found] for path, found in reads(graph).items()}
      {'w': ['weight'], 'b': ['bias']}
    """
    search = _Reads(traced)
    given = [_Known(made_of={path: Strided.of(search.shapes[path])}) for path in traced.variables]
    search.body(traced.jaxpr, traced.consts, [*given, *(_Known(fed=True) for _ in traced.inputs)])
    return search.uses


@dataclass(frozen=True, kw_only=True)
class Read:
    """An operation that reads a leaf."""

    eqn: Equation
    kind: Kind
    axes: WeightAxes | None = None
    fed: bool = True
    """Whether the operation depends on an input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What is known of a value: whether it depends on an input, and which leaves it is made of, and where they are in it."""

    fed: bool = False
    made_of: Mapping[Path, Strided | None] = field(default_factory=dict)
    rooted: frozenset[Path] = frozenset()


class _Reads(Forward[_Known]):
    """Follows leaves through what is computed of variables alone, and notes what joins them with an input."""

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.shapes = {path: tuple(aval.shape) for path, aval in zip(traced.variables, traced.in_avals)}
        self.uses: dict[Path, list[Read]] = {}

    def constant(self, value: Any) -> _Known:
        return _Known()

    def operation(self, eqn: Equation, given: list[_Known]) -> list[_Known]:
        if any(known.fed for known in given) or _compat.is_opaque(eqn.raw):
            for place, known in enumerate(given):
                self._note(eqn, place, known)
            return [_Known(fed=True)] * len(eqn.outvars)
        if eqn.primitive in PRODUCTS:  # with a constant, or as a factor of a weight
            for place, known in enumerate(given):
                self._note(eqn, place, known, fed=False)
        return [self._computed(eqn, given)] * len(eqn.outvars)

    def call(self, eqn: Equation, given: list[_Known]) -> list[_Known]:
        results = [_Known()] * len(eqn.outvars)
        for body in eqn.bodies:
            entering = [self._entering(eqn, body, position, given[at]) for position, at in enumerate(body.operands)]
            leaving = self.inside(eqn, body, entering)
            chosen = eqn.primitive in ("cond", "while") and any(known.fed for known in given)  # by what depends on an input
            for result, known in zip(body.results, leaving):
                if eqn.primitive not in INLINED:
                    known = replace(known, fed=known.fed or chosen, made_of=dict.fromkeys(known.made_of))
                results[result] = _joined([results[result], known])
        return results

    def _entering(self, eqn: Equation, body: _compat.Body, position: int, known: _Known) -> _Known:
        """What the body of a call gets as its operand at a position."""
        back, var = {into: out for out, into in body.carry}, body.jaxpr.invars[position]
        if position in back and body.jaxpr.outvars[back[position]] is not var:
            for path in known.made_of:
                self._add(path, Read(eqn=eqn, kind="other"))
            return _Known(fed=True)
        parts = known.made_of
        if position in body.scanned_in:
            parts = {path: value and value.layer() for path, value in parts.items()}
        shape = tuple(map(_compat.concrete, _compat.aval(var).shape))  # a part of it, where devices have one each
        parts = {path: value and value.of_shape(shape) for path, value in parts.items()}
        return replace(known, made_of=parts)

    def _computed(self, eqn: Equation, given: Sequence[_Known]) -> _Known:
        """What is known of a value that is computed of variables alone."""
        joined = _joined(given)
        moved = {
            path: place.moved(eqn) if place is not None and _among(given, path) == 1 else None
            for path, place in joined.made_of.items()
        }
        rooted = joined.rooted | (set(moved) if eqn.primitive in _ROOTS else set())
        return _Known(made_of=moved, rooted=frozenset(rooted))

    def _note(self, eqn: Equation, place: int, known: _Known, fed: bool = True) -> None:
        for path, value in known.made_of.items():
            kind, kinds = _read(eqn, place)
            if kind in ("scale", "bias") and path in known.rooted:
                kind = "statistic"
            axes = None if value is None or kinds is None else _axes(eqn, self.shapes[path], value, kinds)
            if value is None and kind in ("weight", "look-up"):
                kind = "other"  # something that is computed of it, not the leaf itself
            self._add(path, Read(eqn=eqn, kind=kind, axes=axes, fed=fed))

    def _add(self, path: Path, use: Read) -> None:
        self.uses.setdefault(path, []).append(use)


def _among(given: Sequence[_Known], path: Path) -> int:
    """Of how many operands a leaf is itself a part."""
    return sum(known.made_of.get(path) is not None for known in given)


def _joined(given: Sequence[_Known]) -> _Known:
    made_of: dict[Path, Strided | None] = {}
    for known in given:
        made_of |= {path: place for path, place in known.made_of.items() if place is not None or path not in made_of}
    if any(known.fed for known in given):
        return _Known(fed=True)
    return _Known(made_of=made_of, rooted=frozenset().union(*(known.rooted for known in given)))


def _axes(eqn: Equation, leaf: tuple[int, ...], value: Strided, kinds: Sequence[str]) -> WeightAxes | None:
    found = by_kind(kinds_of_axes(leaf, value, kinds)) if len(kinds) == len(value.shape) else None
    if found is None:
        return None
    grouped = eqn.primitive == "conv_general_dilated" and eqn.params["feature_group_count"] > 1 and "groups" not in found
    return WeightAxes(**found, grouped=grouped)  # type: ignore[arg-type]


def _read(eqn: Equation, place: int) -> tuple[Kind, Sequence[str] | None]:
    """As what an operation reads an operand, and of which kinds its axes are."""
    name, ndim = eqn.primitive, len(eqn.in_avals[place].shape)
    if name == "dot_general":
        contracting, batch = (sides[place] for sides in eqn.params["dimension_numbers"])
        return "weight", [
            "inputs" if axis in contracting else "stacked" if axis in batch else "outputs" for axis in range(ndim)
        ]
    if name == "conv_general_dilated" and place == 1 and eqn.params["batch_group_count"] == 1:
        return "weight", _of_kernel(eqn, ndim)
    if name in RAGGED and place == 1 and ndim == 3:
        return "weight", ["stacked", "inputs", "outputs"]
    if name == "gather" and place == 0:
        rows = set(eqn.params["dimension_numbers"].start_index_map)
        return "look-up", ["inputs" if axis in rows else "outputs" for axis in range(ndim)]
    if name in PRODUCTS | RAGGED:
        return "weight", None
    if name in _ADDED | _SCALED:
        return ("bias" if name in _ADDED else "scale"), None
    return ("unseen" if _compat.is_opaque(eqn.raw) or name == "call_exported" else "other"), None


def _of_kernel(eqn: Equation, ndim: int) -> list[str]:
    numbers, groups = eqn.params["dimension_numbers"].rhs_spec, eqn.params["feature_group_count"]
    out, into = numbers[:2]
    depthwise = groups > 1 and eqn.in_avals[1].shape[out] == groups
    return [
        ("groups" if depthwise else "outputs") if axis == out else "inputs" if axis == into else "spatial"
        for axis in range(ndim)
    ]


__all__ = ["Kind", "Read", "reads"]
