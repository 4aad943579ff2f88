"""Groups of channels: what must be removed together, by path."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_jax.core.typing import Path
from lepton_jax.graph.axes import FIXED, Analysis
from lepton_jax.graph.trace import Traced

Place = tuple[Path, int]
"""A leaf's path and one of its axes."""
Keep = np.ndarray
"""bool[n]: which indices of an axis stay."""
Keeps = tuple[Keep, ...]
"""One for every axis of a value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Which indices of one axis of one leaf belong to each channel of a group.

    Example:
      >>> slices = Slices(path="kernel", axis=1, indices=np.array([[0, 1], [2, 3]]))
      >>> slices.indices[1].tolist()  # of channel 1
      [2, 3]
    """

    path: Path
    axis: int
    indices: np.ndarray
    """int[channels, indices per channel]"""

    @property
    def place(self) -> Place:
        """The leaf's path and the axis."""
        return self.path, self.axis


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Channels of like structure: each may be removed alone, with all its coupled slices.

    Channel `c` occupies ``s.indices[c]`` of axis ``s.axis`` of leaf ``s.path``, for every `s` in `slices`.

    Example:
      >>> up = Slices(path="up", axis=1, indices=np.array([[0], [1]]))
      >>> down = Slices(path="down", axis=0, indices=np.array([[0], [1]]))
      >>> group = Group(slices=(up, down))
      >>> len(group.slices[0].indices), [(s.path, s.axis) for s in group.slices]
      (2, [('up', 1), ('down', 0)])
    """

    slices: tuple[Slices, ...]
    removed: tuple[int, ...] = ()
    """The numbers of the channels that the plan removes."""

    @property
    def name(self) -> str:
        """The place of the group's first slice, by which it is known."""
        first = max(self.slices, key=lambda s: s.axis)
        return f"{first.path}[{first.axis}]"

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.slices[0].indices)

    def __str__(self) -> str:
        head = f"{self.name}: {self.size} channels, {len(self.removed)} removed"
        lines = [
            f"  {s.path} axis {s.axis}" + (f", {s.indices.shape[1]} indices a channel" if s.indices.shape[1] > 1 else "")
            for s in self.slices
        ]
        return "\n".join([head, *lines])


def atoms_of(values: Iterable[Keeps]) -> list[tuple[np.ndarray, ...]]:
    """Give every index that goes, of every axis of every value, an atom of its own, and all others 0.

    Example:
      >>> atoms_of([(np.array([True, False]), np.array([False, False]))])
      [(array([0, 1]), array([2, 3]))]
    """
    count, labels = 1, []
    for keeps in values:
        axes = []
        for keep in keeps:
            axes.append(np.where(keep, 0, count - 1 + np.cumsum(~keep)))
            count += int(np.count_nonzero(~keep))
        labels.append(tuple(axes))
    return labels


def number(shapes: Iterable[Sequence[int]]) -> list[tuple[np.ndarray, ...]]:
    """Give every index of every axis of every leaf an atom of its own."""
    return atoms_of(tuple(np.zeros(n, bool) for n in shape) for shape in shapes)


def find_groups(traced: Traced, analysis: Analysis) -> tuple[Group, ...]:
    """Collect the classes of an analysis into groups: classes that occupy the same places equally often.

    A group of a single channel has none to lose and is left out.
    """
    places: list[Place] = []
    rows = []
    for path, axes in zip(traced.variables, analysis.inputs):
        for axis, atoms in enumerate(axes.atoms):
            classes = analysis.classes[atoms]
            free = np.flatnonzero(classes != FIXED)
            if free.size:
                rows.append(np.stack([classes[free], np.full(free.size, len(places)), free]))
                places.append((path, axis))
    if not rows:
        return ()
    classes, where, index = np.concatenate(rows, axis=1)
    order = np.lexsort((index, where, classes))
    classes, where, index = classes[order], where[order], index[order]
    starts = np.flatnonzero(np.r_[True, classes[1:] != classes[:-1]])
    alike: dict[bytes, list[slice]] = {}
    for start, stop in zip(starts, np.r_[starts[1:], len(classes)]):
        alike.setdefault(where[start:stop].tobytes(), []).append(slice(start, stop))
    groups = []
    for parts in alike.values():
        if len(parts) > 1:
            groups.append(_group(places, where[parts[0]], np.stack([index[part] for part in parts])))
    return tuple(sorted(groups, key=lambda g: (places.index(g.slices[0].place), int(g.slices[0].indices[0, 0]))))


def _group(places: Sequence[Place], where: np.ndarray, indices: np.ndarray) -> Group:
    indices = indices[np.lexsort(indices.T[::-1])]
    slices = []
    for place in dict.fromkeys(where.tolist()):
        path, axis = places[place]
        slices.append(Slices(path=path, axis=axis, indices=indices[:, where == place]))
    return Group(slices=tuple(slices))


def removed_places(groups: Iterable[Group]) -> dict[Place, tuple[int, ...]]:
    """The removed indices of every axis, sorted."""
    found: dict[Place, set[int]] = {}
    for group in groups:
        for s in group.slices:
            found.setdefault(s.place, set()).update(s.indices[list(group.removed)].reshape(-1).tolist())
    return {place: tuple(sorted(indices)) for place, indices in found.items() if indices}


def fixed_places(
    traced: Traced, analysis: Analysis, groups: Iterable[Group], unread: Sequence[Path] = ()
) -> dict[Place, tuple[str, ...]]:
    """The axes that cannot lose any index, and why; axes of length 1 aside, and leaves that are not read."""
    free = {s.place for group in groups for s in group.slices}
    found = {}
    for path, axes in zip(traced.variables, analysis.inputs):
        for axis, atoms in enumerate(axes.atoms):
            if len(atoms) > 1 and (path, axis) not in free and path not in unread:
                found[path, axis] = analysis.reasons(atoms) or ("its channels can only go all together",)
    return found
