"""Where the entries of a leaf are in a value that is the leaf moved about: as numpy does it, by strides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.primitives import ARITHMETIC, PASSING
from lepton_jax.graph.trace import Equation


@dataclass(frozen=True, kw_only=True)
class Strided:
    """A leaf, or one layer of it, moved about: ``value[i, j, ...]`` is its flat entry ``i * strides[0] + j * strides[1] ...``.

    Signs and offsets are left out: only which axis is which is of interest.

    Args:
      shape: of the value.
      strides: one an axis; 0 where entries are repeated.
      layers: (length, stride) of the axes that scans took apart, from outside in.

    Example:
      >>> leaf = Strided.of((3, 4))
      >>> leaf.strides, leaf.layer().strides, leaf.layer().layers
      ((4, 1), (1,), ((3, 4),))
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    layers: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, shape: Sequence[int]) -> Strided:
        """A leaf as it is."""
        return cls(shape=tuple(shape), strides=tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))

    def layer(self) -> Strided:
        """What one step of a scan over the leading axis gets."""
        layer = (self.shape[0], self.strides[0])
        return replace(self, shape=self.shape[1:], strides=self.strides[1:], layers=(*self.layers, layer))

    def of_shape(self, shape: tuple[int, ...]) -> Strided | None:
        """The same, a part of it along some axes."""
        return replace(self, shape=shape) if len(shape) == len(self.shape) else None

    def moved(self, eqn: Equation) -> Strided | None:
        """The value that an operation makes of it; None if its entries have no place in that."""
        params, shape = eqn.params, tuple(map(_compat.concrete, eqn.out_avals[0].shape))
        match eqn.primitive:
            case "transpose":
                return self._along(params["permutation"])
            case "squeeze":
                gone = {axis % len(self.shape) for axis in params["dimensions"]}
                return self._along([axis for axis in range(len(self.shape)) if axis not in gone])
            case "reshape":
                order = params.get("dimensions")  # in which the axes are gone through
                return (self if order is None else self._along(order))._reshaped(shape)
            case "broadcast_in_dim":
                return self._broadcast(shape, params["broadcast_dimensions"])
            case "slice":
                steps = params["strides"] or (1,) * len(shape)
                return replace(self, shape=shape, strides=tuple(s * step for s, step in zip(self.strides, steps)))
            case "rev" | "dynamic_slice" | "pad" | "concatenate":
                return replace(self, shape=shape)
            case name if name in PASSING | ARITHMETIC | {"reduce_precision", "select_n", "clamp"} and shape == self.shape:
                return self
        return None

    def _along(self, axes: Sequence[int]) -> Strided:
        return replace(self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes))

    def _broadcast(self, shape: tuple[int, ...], places: Sequence[int]) -> Strided:
        strides = [0] * len(shape)
        for axis, place in enumerate(places):
            strides[place] = self.strides[axis] if self.shape[axis] == shape[place] else 0
        return replace(self, shape=shape, strides=tuple(strides))

    def _reshaped(self, shape: tuple[int, ...]) -> Strided | None:
        # Numpy knows how strides are reshaped. The memory is only promised: nothing reads or writes it.
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides) if size)
        view = np.lib.stride_tricks.as_strided(np.empty(extent, np.uint8), self.shape, self.strides, writeable=False)
        try:
            return replace(self, shape=shape, strides=np.reshape(view, shape, copy=False).strides)
        except ValueError:  # it would have to be copied
            return None


def kinds_of_axes(leaf: Sequence[int], value: Strided, kinds: Sequence[str]) -> list[set[str]]:
    """Return, for every axis of a leaf, of which kinds the axes of a value are along which its index changes.

    Args:
      leaf: its shape.
      value: the leaf moved about.
      kinds: of every axis of the value; those of the scans' axes are "stacked".

    Example:
      >>> found = kinds_of_axes((2, 6), Strided(shape=(2, 3, 2), strides=(6, 2, 1)), ("inputs", "stacked", "outputs"))
      >>> [sorted(kinds) for kinds in found]
      [['inputs'], ['outputs', 'stacked']]
    """
    own = Strided.of(leaf).strides
    runs = [*zip(kinds, value.shape, value.strides), *(("stacked", *layer) for layer in value.layers)]
    moving = [(kind, size, stride) for kind, size, stride in runs if size > 1 and stride]
    found = [
        {kind for kind, size, stride in moving if length > 1 and stride < step * length and (size - 1) * stride >= step}
        for length, step in zip(leaf, own)
    ]
    for axis, (size, _) in enumerate(value.layers):
        found[axis] |= {"stacked"} if size == leaf[axis] == 1 else set()  # a scan of one step
    return found


def by_kind(found: Sequence[set[str]]) -> Mapping[str, tuple[int, ...]] | None:
    """Return the axes of every kind; None if one is of several. An axis of length 1 is of what there is none of yet.

    Example:
      >>> by_kind([{"outputs"}, set()]), by_kind([{"outputs", "inputs"}])
      ({'outputs': (0,), 'inputs': (1,)}, None)
    """
    if any(len(kinds) > 1 for kinds in found):
        return None
    axes: dict[str, tuple[int, ...]] = {}
    for axis, kinds in enumerate(found):
        for kind in kinds:
            axes[kind] = (*axes.get(kind, ()), axis)
    for axis in reversed([axis for axis, kinds in enumerate(found) if not kinds]):
        lacking = [name for name in ("outputs", "inputs") if name not in axes and (name == "inputs" or "groups" not in axes)]
        name = [*lacking, "spatial"][0]
        axes[name] = (axis, *axes.get(name, ()))
    return axes


__all__ = ["Strided", "by_kind", "kinds_of_axes"]
