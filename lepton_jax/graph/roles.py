"""What every leaf of a model is: which operation reads it and as what, and what a weight's axes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import jax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.packed import is_packed
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.primitives import INLINED, PRODUCTS, RAGGED, names
from lepton_jax.graph.strided import Strided, by_kind, kinds_of_axes
from lepton_jax.graph.trace import Apply, Equation, Traced, trace

Kind = Literal["weight", "look-up", "bias", "scale", "statistic", "other", "unseen", "unread"]

_ADDED, _SCALED = names("add sub add_any"), names("mul div pow integer_pow")
_ROOTS = names("rsqrt sqrt exp log tanh logistic")


@checked
@dataclass(frozen=True, kw_only=True)
class Role:
    """What a leaf is.

    Args:
      kind: weight: multiplied by in a dot or a convolution. look-up: a table whose rows are taken. bias, scale: added to what
        the model computes, multiplied with it. statistic: the same, of a collection that is not trained, or through a root.
        other: read in another way. unseen: read by what cannot be looked into, such as a loaded program. unread: by nothing.
      read_by: the names of the operations.
      axes: of a weight or a look-up; None if different uses read it differently.

    Example:
      >>> Role(kind="bias", read_by=("add",)).is_weight
      False
    """

    kind: Kind
    read_by: tuple[str, ...] = ()
    axes: WeightAxes | None = None

    def __post_init__(self) -> None:
        check_option("Role: kind", self.kind, Kind)

    @property
    def is_weight(self) -> bool:
        """Whether techniques for weights take it: a weight or a look-up of two axes or more, which are clear."""
        return self.kind in ("weight", "look-up") and self.axes is not None and self.axes.ndim - len(self.axes.stacked) > 1

    @property
    def unclear(self) -> bool:
        """Whether it is a weight of which nobody can say which axis is which; it is left alone."""
        return self.kind in ("weight", "look-up") and self.axes is None


class Roles(Mapping[Path, Role]):
    """The role of every leaf, by path; printed, a table.

    Example:
      >>> found = Roles({"w": Role(kind="unread")}, {"w": (3, 2)})
      >>> found["w"].kind, list(found)
      ('unread', ['w'])
    """

    def __init__(self, found: Mapping[Path, Role], shapes: Mapping[Path, tuple[int, ...]]) -> None:
        self._found, self.shapes = dict(found), dict(shapes)

    def __getitem__(self, path: Path) -> Role:
        return self._found[path]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __str__(self) -> str:
        rows: list[Sequence[Any]] = [("leaf", "shape", "taken for", "axes", "read by")]
        for path, role in self.items():
            axes = "unclear, left alone" if role.unclear else str(role.axes or "")
            rows.append((path, self.shapes[path], role.kind, axes, ", ".join(role.read_by)))
        return table(rows, left=range(5))

    __repr__ = __str__


@checked
def roles(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> Roles:
    """Return what every leaf is, by what the function does with it.

    A leaf is followed through everything that is computed of variables alone (transposes, reshapes, casts, scales, calls,
    scans over it, functions with their own derivatives) to the operations that join it with an input.

    Args:
      apply: ``apply(variables, *inputs, **static)``.
      variables: arrays or packed leaves, or shapes.
      *inputs: arrays, or their shapes.
      **static: keywords of `apply`.

    Example:
      >>> import jax.numpy as jnp
      >>> def apply(v, x):
      ...     return jnp.einsum("bi,oi->bo", x, v["kernel"]) * v["gain"][None] + v["shift"]
      >>> variables = {"kernel": jnp.ones((5, 3)), "gain": jnp.ones(5), "shift": jnp.ones((1, 5)), "old": jnp.ones(2)}
      >>> print(roles(apply, variables, jnp.ones((2, 3))))
      leaf    shape   taken for  axes                 read by
      gain    (5,)    scale                           mul
      kernel  (5, 3)  weight     inputs 1; outputs 0  dot_general
      old     (2,)    unread
      shift   (1, 5)  bias                            add
    """
    dense = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables, is_leaf=is_packed)
    traced = trace(apply, dense, *inputs, **static)
    search = _Search(traced)
    given = [_Known(made_of={path: Strided.of(search.shapes[path])}) for path in traced.variables]
    search.body(traced.jaxpr, traced.consts, [*given, *(_Known(fed=True) for _ in traced.inputs)])
    whole = not isinstance(variables, Mapping) or "params" not in variables  # all of it is trained
    found = {path: _role(search.uses.get(path, []), whole or path.startswith("params/")) for path in traced.variables}
    return Roles(found, search.shapes)


@checked
@dataclass(frozen=True, eq=False)
class Weights:
    """A selector: the weights of a function, with their axes; see `weights`.

    Example:
      >>> axes = WeightAxes(inputs=(0,), outputs=(1,))
      >>> chosen = Weights(Roles({"w": Role(kind="weight", axes=axes)}, {"w": (3, 2)}))
      >>> chosen.axes("w") == axes, chosen.axes("other")
      (True, None)
    """

    roles: Roles = field(repr=False)

    def __call__(self, path: Path, leaf: Any) -> bool:
        found = self._role(path)
        if found is None or not paths.is_floating(leaf):
            return False
        role, factor = found
        return paths.matrices(path, leaf) if role.kind == "unseen" or (factor and role.is_weight) else role.is_weight

    def axes(self, path: Path) -> WeightAxes | None:
        """Return the axes of a weight; of a thin factor of it, those that follow."""
        found = self._role(path)
        if found is None or found[0].axes is None:
            return None
        axes, factor = found[0].axes, found[1]
        return axes if not factor else axes.of_factors if factor in ("u", "v") else None

    @cached_property
    def left(self) -> dict[Path, Role]:
        """The leaves that are not taken, and what they are."""
        return {path: role for path, role in self.roles.items() if not role.is_weight and role.kind != "unseen"}

    def _role(self, path: Path) -> tuple[Role, str] | None:
        """The role of a leaf, or of the leaf that it is a factor of, and its name as a factor."""
        for whole in (path, f"params/{path}"):  # transforms are given the parameters alone
            if whole in self.roles:
                return self.roles[whole], ""
            head, _, name = whole.rpartition("/")
            if head in self.roles:
                return self.roles[head], name
        return None


@checked
def weights(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> Weights:
    """Return a selector of a function's weights, which knows their axes: ``prune(0.9, select=weights(apply, variables, x))``.

    What is stacked (by a scan, a vmap, experts) is treated weight by weight; scales are those of output channels, groups run
    along inputs, in any layout. Biases, scales, statistics and what is not read are left alone, and so are leaves whose axes
    are not clear; ``print(weights(...).roles)`` shows what each leaf was taken for.

    Args:
      apply: ``apply(variables, *inputs, **static)``.
      variables: arrays or packed leaves, or shapes. Of a mapping with "params", a transform may be given these alone.
      *inputs: arrays, or their shapes.
      **static: keywords of `apply`.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.core.paths import select
      >>> variables = {"w": jnp.ones((5, 3)), "shift": jnp.ones((2, 5))}
      >>> chosen = weights(lambda v, x: x @ v["w"].T + v["shift"], variables, jnp.ones((2, 3)))
      >>> list(select(variables, chosen)), chosen.axes("w")
      (['w'], WeightAxes(stacked=(), groups=(), inputs=(1,), outputs=(0,), spatial=(), grouped=False))
    """
    return Weights(roles(apply, variables, *inputs, **static))


@dataclass(frozen=True, kw_only=True)
class _Use:
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


def _role(uses: Sequence[_Use], trained: bool) -> Role:
    """Sum up what a leaf is: what it is multiplied as goes first."""
    if any(use.fed and use.kind == "weight" for use in uses):  # what is computed of it beside, such as a norm, says nothing
        uses = [use for use in uses if use.fed]
    kinds = {use.kind for use in uses}
    order: tuple[Kind, ...] = ("weight", "look-up", "unseen", "statistic", "scale", "bias", "other", "unread")
    kind = next(kind for kind in order if kind in kinds or kind == "unread")
    if kind in ("scale", "bias", "other") and not trained:
        kind = "statistic"
    read_by = tuple(dict.fromkeys(use.eqn.primitive for use in uses))
    axes = {use.axes for use in uses if use.kind == kind}
    return Role(kind=kind, read_by=read_by, axes=axes.pop() if len(axes) == 1 else None)


class _Search(Forward[_Known]):
    """Follows leaves through what is computed of variables alone, and notes what joins them with an input."""

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.shapes = {path: tuple(aval.shape) for path, aval in zip(traced.variables, traced.in_avals)}
        self.uses: dict[Path, list[_Use]] = {}

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
                self._add(path, _Use(eqn=eqn, kind="other"))
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
            self._add(path, _Use(eqn=eqn, kind=kind, axes=axes, fed=fed))

    def _add(self, path: Path, use: _Use) -> None:
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


__all__ = ["Kind", "Role", "Roles", "Weights", "roles", "weights"]
