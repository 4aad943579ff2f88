"""Where every leaf of a training state lies on a mesh: weights as told, and all that belongs to a weight as that weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.training.arrays import put

Specs = Mapping[str, PartitionSpec] | Callable[[Path, Any], PartitionSpec]
"""Globs over the paths of parameters, of which the first that matches counts; or a function of path and leaf."""


@checked
@dataclass(frozen=True)
class Placement:
    """Which axes of which parameters are spread over which axes of a mesh; a parameter that nothing names is whole everywhere.

    What belongs to a parameter follows it: masks, factors, step sizes, moments and averages have the parameter's path within
    their own. One of the parameter's shape lies as the parameter. In any other, an axis that holds a spread axis of the
    parameter, alone or merged with its neighbours, is spread as that: of a kernel ``(in, out)`` over outputs with factors
    ``u (in, rank)`` and ``v (rank, out)``, `v` is spread over its outputs and `u` is whole.

    Args:
      mesh: of devices, with named axes; an abstract one, of devices that are not there, tells shapes and shares alone.
      specs: ``{pattern: PartitionSpec}``, a pattern being a glob over the paths of parameters; the first that matches
        counts. Or a function ``(path, leaf) -> PartitionSpec``.
      batch: the axis of the mesh that batches are spread over; by default its first.

    Raises:
      ValueError: if the mesh lacks an axis.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> placement = Placement(mesh, {"*/kernel": PartitionSpec("data", None)})
      >>> placed = placement.place({"Dense_0": {"kernel": jax.numpy.ones((4, 2)), "bias": jax.numpy.ones(2)}})
      >>> print(placement.table(placed))
      Dense_0/bias    float32[2]    whole           8 bytes a device
      Dense_0/kernel  float32[4,2]  data, whole    32 bytes a device
    """

    mesh: Mesh | AbstractMesh
    specs: Specs
    batch: str | None = None

    def __post_init__(self) -> None:
        named = {} if callable(self.specs) else self.specs
        with collect(f"Placement: the mesh has the axes {', '.join(map(str, self.mesh.axis_names))}") as problems:
            for pattern, spec in named.items():
                if missing := [name for entry in spec for name in _names(entry) if name not in self.mesh.shape]:
                    problems.append(f"{pattern}: {spec} names {', '.join(map(repr, missing))}, which it lacks")
            if self.batch is not None and self.batch not in self.mesh.shape:
                problems.append(f"batch: {self.batch!r} is not one of them")

    @property
    def devices(self) -> Mesh:
        """The mesh of devices that are there.

        Raises:
          ValueError: if it is abstract.
        """
        if isinstance(self.mesh, AbstractMesh):
            raise ValueError("Placement: an abstract mesh has no devices to put arrays on; give jax.make_mesh(...).")
        return self.mesh

    @property
    def batch_axis(self) -> str:
        """The axis of the mesh that batches are spread over."""
        return self.batch or self.mesh.axis_names[0]

    def weights(self, params: PyTree) -> dict[Path, PartitionSpec]:
        """Return how each parameter is spread.

        Args:
          params: arrays or their shapes, before a transform re-parametrises them.

        Raises:
          ValueError: with every parameter that an axis does not divide, and every pattern that matches none.

        Example:
          >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
          >>> tuple(Placement(mesh, {"w": PartitionSpec("data")}).weights({"w": jax.numpy.ones(4)})["w"])
          ('data',)
        """
        leaves = paths.flatten(params)
        with collect("Placement: choose axes that divide, or leave the parameter whole") as problems:
            found = {path: self._spec(path, leaf, leaves) for path, leaf in leaves.items()}
            for path, spec in found.items():
                problems += [f"{path}: {why}" for why in self._wrong(jax.numpy.shape(leaves[path]), spec)]
            for pattern in () if callable(self.specs) else self.specs:
                if not any(paths.matches(pattern, path, leaf, leaves) for path, leaf in leaves.items()):
                    problems.append(f"{pattern}: matches no parameter; there are {', '.join(leaves) or 'none'}")
        return found

    def shardings(self, tree: PyTree, params: PyTree) -> PyTree:
        """Return the sharding of every leaf of a tree that belongs to parameters: a state, moments, masks, a view.

        Args:
          tree: arrays or their shapes.
          params: the parameters, or their shapes, before a transform re-parametrises them.

        Raises:
          ValueError: as `weights`.

        Example:
          >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
          >>> placement = Placement(mesh, {"w": PartitionSpec(None, "data")})
          >>> factors = {"w": {"u": jax.numpy.ones((4, 1)), "v": jax.numpy.ones((1, 2))}}
          >>> [tuple(one.spec) for one in jax.tree.leaves(placement.shardings(factors, {"w": jax.numpy.ones((4, 2))}))]
          [(), (None, 'data')]
        """
        shapes = {tuple(path.split("/")): jax.numpy.shape(leaf) for path, leaf in paths.flatten(params).items()}
        specs = {tuple(path.split("/")): spec for path, spec in self.weights(params).items()}

        def lie(key_path: Any, leaf: Any) -> NamedSharding:
            owner = _owner(tuple(paths.path_str(key_path).split("/")), shapes)
            spec = PartitionSpec() if owner is None else _follow(jax.numpy.shape(leaf), shapes[owner], specs[owner])
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(lie, tree)

    def place(self, tree: PyTree, params: PyTree | None = None) -> PyTree:
        """Put a tree on the mesh.

        Args:
          tree: arrays; typed random keys too. In several processes each gives the same.
          params: as for `shardings`; by default the tree itself.

        Raises:
          ValueError: as `weights`.

        Example:
          >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
          >>> placed = Placement(mesh, {"w": PartitionSpec("data")}).place({"w": jax.numpy.ones(4)})
          >>> tuple(placed["w"].sharding.spec)
          ('data',)
        """
        return jax.tree.map(put, tree, self.shardings(tree, tree if params is None else params))

    def table(self, tree: PyTree) -> str:
        """Return a line for every leaf of a placed tree: path, type, what each axis is spread over, bytes on each device.

        Example:
          >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
          >>> print(Placement(mesh, {}).table({"w": jax.numpy.ones(4)}))
          w  float32[4]  whole  16 bytes a device
        """
        return table([(path, *_row(leaf)) for path, leaf in paths.flatten(tree).items()], left=(0, 1, 2))

    def _spec(self, path: Path, leaf: Any, among: Mapping[Path, Any]) -> PartitionSpec:
        if callable(self.specs):
            return self.specs(path, leaf)
        return next(
            (spec for pattern, spec in self.specs.items() if paths.matches(pattern, path, leaf, among)), PartitionSpec()
        )

    def _wrong(self, shape: tuple[int, ...], spec: PartitionSpec) -> list[str]:
        if len(spec) > len(shape):
            return [f"{spec} is for {len(spec)} axes; the shape is {shape}"]
        counts = [math.prod(self.mesh.shape.get(name, 0) for name in _names(entry)) for entry in spec]
        lacks = [f"{entry!r} is no axis of the mesh" for entry, count in zip(spec, counts) if not count]
        return lacks or [
            f"axis {axis} of {shape} is not a multiple of the {count} devices of {entry!r}"
            for axis, (entry, count) in enumerate(zip(spec, counts))
            if shape[axis] % count
        ]


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _owner(path: tuple[str, ...], weights: Mapping[tuple[str, ...], Any]) -> tuple[str, ...] | None:
    """Return the longest path of a weight that lies within this one; of equally long ones the last."""
    for length in range(len(path), 0, -1):
        for first in range(len(path) - length, -1, -1):
            if (part := path[first : first + length]) in weights:
                return part
    return None


def _follow(shape: tuple[int, ...], weight: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    """Return how what belongs to a weight is spread, given how the weight is."""
    if shape == weight:
        return spec
    entries: list[Any] = []
    for axis in range(len(shape)):
        entry = _entry(shape, axis, weight, spec)
        entries.append(None if entry in entries else entry)  # an axis of the mesh spreads one axis only
    return PartitionSpec(*entries) if any(entries) else PartitionSpec()


def _entry(shape: tuple[int, ...], axis: int, weight: tuple[int, ...], spec: PartitionSpec) -> Any:
    """Return what one axis is spread over: of the weight's axes that it holds, the first that is spread.

    It holds those that stand where it stands, counted from the end or else from the front, and whose product is its size.
    """
    end = len(weight) - len(shape) + axis
    from_end = [range(first, end + 1) for first in range(end, -1, -1)]
    from_front = [range(axis, last + 1) for last in range(axis, len(weight))]
    for run in from_end + from_front:
        if run.stop <= len(weight) and math.prod(weight[at] for at in run) == shape[axis]:
            return next((spec[at] for at in run if at < len(spec) and spec[at] is not None), None)
    return None


def _row(leaf: Any) -> tuple[str, str, str]:
    shape, sharding = jax.numpy.shape(leaf), getattr(leaf, "sharding", None)
    spec = tuple(getattr(sharding, "spec", ()))
    entries = [" and ".join(_names(entry)) or "whole" for entry in (*spec, *(None,) * (len(shape) - len(spec)))]
    part = shape if sharding is None else sharding.shard_shape(shape)
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jax.numpy.result_type(leaf)
    key = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    size = jax.eval_shape(jax.random.key_data, leaf).size * 4 // max(leaf.size, 1) if key else dtype.itemsize
    how = ", ".join(entries) if any(map(_names, spec)) else "whole"
    return f"{dtype}[{','.join(map(str, shape))}]", how, f"{math.prod(part) * size} bytes a device"
