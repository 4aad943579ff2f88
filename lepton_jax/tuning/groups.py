"""Groups of channels as units of a table: what each loses when some of its channels go, and what that makes of every leaf."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.channels import Group, Plan, plan
from lepton_jax.tuning.layer import Layer
from lepton_jax.tuning.options import Channels, Choice, Option

Fractions = Mapping[str, float]
"""By the name of a group, the fraction of its channels that goes; those that are not named keep all."""


class Removal(NamedTuple):
    """What it does to remove some channels of one group, all else as it is.

    Attributes:
      loss: how far the outputs move, see `measure`.
      bytes: by how much the leaves that are no layers become more; below 0.
      macs: the same of the work that is no layer's.
      removed: numbers of the channels.
    """

    loss: float
    bytes: int
    macs: float
    removed: tuple[int, ...]


class Block(NamedTuple):
    """A part of a leaf.

    Attributes:
      share: of the leaf's elements.
      groups: whose channels its axes are; one twice, if two axes are.
    """

    share: float
    groups: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of a model.

    Args:
      plan: of the model, with nothing removed.
      cells: by group and fraction, of those that may lose channels.

    Example:
      >>> import jax.numpy as jnp
      >>> apply = lambda v, x: jnp.tanh(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.ones((2, 4)), "down": jnp.ones((4, 3))}
      >>> found = Groups(plan=plan(apply, variables, jnp.ones((1, 2)), fraction=0), cells={"up[1]": {}})
      >>> list(found.named), found.blocks("down")
      (['up[1]'], [Block(share=1.0, groups=('up[1]',))])
    """

    plan: Plan
    cells: Mapping[str, Mapping[float, Removal]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and (self.cells, self.plan.to_json()) == (other.cells, other.plan.to_json())

    @cached_property
    def named(self) -> dict[str, Group]:
        """The groups by name."""
        return named(self.plan)

    def kept(self, name: str, fraction: float) -> float:
        """Return the share of a group's channels that stays."""
        removed = self.cells[name][fraction].removed if fraction else ()
        return 1 - len(removed) / self.named[name].size

    def blocks(self, path: Path) -> list[Block]:
        """Return the parts of a leaf, of which each shrinks by the product of what its groups keep."""
        shape, axes = self.plan.shapes[path], []
        for axis, length in enumerate(shape):
            covered = {
                name: s.indices.size / length
                for name, group in self.named.items()
                for s in group.slices
                if name in self.cells and s.place == (path, axis)
            }
            rest = 1 - sum(covered.values())
            axes.append([*((share, (name,)) for name, share in covered.items()), *([(rest, ())] if rest > 1e-9 else [])])
        found: dict[tuple[str, ...], float] = {}
        for parts in itertools.product(*axes):
            groups = tuple(sorted(name for _, names in parts for name in names))
            found[groups] = found.get(groups, 0.0) + math.prod(share for share, _ in parts)
        return [Block(share, groups) for groups, share in found.items()]

    def ratio(self, path: Path, fractions: Fractions) -> float:
        """Return what is left of a leaf's elements, as a share."""
        return sum(
            share * math.prod(self.kept(name, fractions.get(name, 0.0)) for name in groups)
            for share, groups in self.blocks(path)
        )

    def plan_of(self, fractions: Fractions) -> Plan | None:
        """Return the plan that removes these; None where that is nothing."""
        removed = {name: self.cells[name][f].removed for name, f in fractions.items() if f}
        return self._with(removed) if removed else None

    def fractions_of(self, chosen: Plan | None) -> dict[str, float]:
        """Undo `plan_of`.

        Raises:
          ValueError: for a plan that the table has no cells for.
        """
        found = dict.fromkeys(self.cells, 0.0)
        for name, group in named(chosen).items() if chosen is not None else ():
            if group.removed:
                same = [f for f, cell in self.cells.get(name, {}).items() if cell.removed == group.removed]
                if not same:
                    raise ValueError(
                        f"refine: the table has no such removal of {name}; give the table that the recipe was made from."
                    )
                found[name] = same[0]
        return found

    def _with(self, removed: Mapping[str, tuple[int, ...]]) -> Plan:
        groups = tuple(dataclasses.replace(g, removed=removed.get(name, ())) for name, g in self.named.items())
        return dataclasses.replace(self.plan, groups=groups)

    def without(self, name: str, removed: tuple[int, ...]) -> Plan:
        """Return the plan that removes some channels of one group."""
        return self._with({name: removed})


def named(chosen: Plan) -> dict[str, Group]:
    """Return the groups of a plan by name, a number behind it where several have the same."""
    found: dict[str, Group] = {}
    for group in chosen.groups:
        names = (group.name if n == 1 else f"{group.name} #{n}" for n in itertools.count(1))
        found[next(name for name in names if name not in found)] = group
    return found


def candidates(
    apply: Apply, variables: PyTree, inputs: tuple[Any, ...], options: Iterable[Option], others: set[Path]
) -> tuple[Groups | None, dict[str, dict[float, tuple[int, ...]]]]:
    """Return the groups that options allow to lose channels, and which channels go at every fraction.

    Of fractions that remove the same, the least is taken.

    Args:
      apply: of the model.
      variables: its own.
      inputs: of one call.
      options: of which `Channels` are looked at.
      others: weights that must not change.
    """
    fractions = sorted({float(f) for one in options if isinstance(one, Channels) for f in one.values}, reverse=True)
    if not fractions:
        return None, {}
    empty = plan(apply, variables, *inputs, fraction=0)
    allowed = {name for name, g in named(empty).items() if not others & {s.path for s in g.slices}}
    if not allowed:
        return None, {}
    exclude: Any = (lambda path, leaf: path in others) if others & {s.path for g in empty.groups for s in g.slices} else ()
    found: dict[str, dict[float, tuple[int, ...]]] = {name: {} for name in allowed}
    for fraction in fractions:  # the most first, so that what goes at less is a part of it
        chosen = named(plan(apply, variables, *inputs, fraction=fraction, exclude=exclude))
        for name in allowed:
            more = next(reversed(found[name].values()), None)
            removed = tuple(c for c in chosen[name].removed if more is None or c in more)
            if removed == more:
                found[name].popitem()
            if removed:
                found[name][fraction] = removed
    each = {name: dict(sorted(found[name].items())) for name in named(empty) if found.get(name)}
    return (Groups(plan=empty, cells={}), each) if each else (None, {})


def cut(layer: Layer, path: Path, chosen: Plan | None) -> Layer:
    """Return a layer with the channels that are left; its work falls with its elements.

    Example:
      >>> from lepton_jax.core.weight_axes import WeightAxes
      >>> layer = Layer(shape=(2, 2), axes=WeightAxes(inputs=(0,), outputs=(1,)), macs=4.0)
      >>> cut(layer, "w", None) == layer
      True
    """
    if chosen is None or (left := chosen.left(path)) == layer.shape:
        return layer
    return dataclasses.replace(layer, shape=left, macs=layer.macs * math.prod(left) / math.prod(layer.shape))


def settled(layer: Layer, choice: Choice) -> Choice:
    """Return a choice as it fits a layer that has lost channels; its bits alone where the rest of it no longer does."""
    return layer.settled(choice) or Choice(bits=choice.bits)


def places(chosen: Plan | None) -> dict[Path, tuple[np.ndarray, ...]]:
    """Return of every leaf that loses some the indices that stay, axis by axis.

    Example:
      >>> places(None)
      {}
    """
    found: dict[Path, list[np.ndarray]] = {}
    for (path, axis), gone in chosen.removed.items() if chosen is not None else ():
        assert chosen is not None
        shape = chosen.shapes[path]
        held = found.setdefault(path, [np.arange(length) for length in shape])
        held[axis] = np.setdiff1d(held[axis], gone)
    return {path: tuple(held) for path, held in found.items()}
