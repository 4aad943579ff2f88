"""What every leaf of a model is: which operation reads it and as what, and what a weight's axes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.packed import is_packed
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.graph.reads import Kind, Read, reads
from lepton_jax.graph.trace import Apply, Traced, trace


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
    return roles_of(trace(apply, dense, *inputs, **static), isinstance(variables, Mapping) and "params" in variables)


def roles_of(traced: Traced, parted: bool) -> Roles:
    """Return what every leaf of a graph is; see `roles`.

    Args:
      traced: the graph.
      parted: whether only the leaves under "params" are trained.

    Example:
      >>> import jax.numpy as jnp
      >>> roles_of(trace(lambda v, x: x @ v["w"], {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))), parted=False)["w"].kind
      'weight'
    """
    found, shapes = reads(traced), {path: tuple(aval.shape) for path, aval in zip(traced.variables, traced.in_avals)}
    each = {p: _role(found.get(p, []), not parted or p.startswith("params/")) for p in traced.variables}
    return Roles(each, shapes)


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


def _role(uses: Sequence[Read], trained: bool) -> Role:
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


__all__ = ["Kind", "Role", "Roles", "Weights", "roles", "weights"]
