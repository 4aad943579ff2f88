"""Lazy values of an inference rewrite: constants of the variables, and convolutions and dots with a scale and a shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation

Compute = Callable[[], Array]
Keep = Callable[[str, Compute], Array]
"""(name, compute) -> value: computed and remembered when folding, looked up afterwards."""

AFFINE = ("add", "sub", "mul", "div", "neg")
"""The operations that a scale and a shift can take in."""


class Const:
    """A promise of a value that depends on no input.

    Args:
      name: unique in the graph.
      compute: gives the array, of shape `small`.
      of_variables: whether variables play a part; a value without is computed where it is used.
      small: the array's shape, 1 where the value is a broadcast: nothing as large as a batch is ever kept.
      shape: the value's shape.
    """

    def __init__(
        self, name: str, compute: Compute, of_variables: bool, small: tuple[int, ...], shape: tuple[int, ...] | None = None
    ):
        self.name, self.compute, self.of_variables = name, compute, of_variables
        self.small, self.shape = tuple(small), tuple(small if shape is None else shape)
        self._kept: Array | None = None

    def array(self, keep: Keep) -> Array:
        """The value at its full shape, kept if variables play a part."""
        if not self.of_variables:
            value = self.compute()
        else:
            if self._kept is None:
                self._kept = keep(self.name, self.compute)
            value = self._kept
        return value if self.small == self.shape else jnp.broadcast_to(value, self.shape)

    def lined_up(self, rank: int) -> tuple[int, ...] | None:
        """The array's sizes with `rank` axes, as an elementwise operation sees them; None if it has others."""
        if len(self.small) == rank:
            return self.small
        return (1,) * rank if not self.small else None


class Affine:
    """``scale * op(x, w) + shift`` for a convolution or dot whose weight `w` is a constant of the variables.

    Scale and shift have an axis for each of the result's, of size 1 but where the weight has that axis too; so the scale
    goes into the weight: ``op(x, scale * w) + shift``.

    Args:
      eqn: the convolution or dot.
      name: its name.
      operands: its operands.
      which: which of them is the weight, a `Const`.
      axes: for each axis of the result that is the weight's, that axis of the weight.
    """

    def __init__(self, eqn: Equation, name: str, operands: Sequence[Any], which: int, axes: dict[int, int]):
        self.eqn, self.name, self.operands, self.which, self.axes = eqn, name, operands, which, axes
        self.scale: Compute | None = None
        self.shift: Compute | None = None
        self.shared = False
        """Whether several operations use the value: then it takes in no more of them."""
        self._array: Array | None = None

    @property
    def aval(self) -> Any:
        """The result's shape and dtype."""
        return self.eqn.out_avals[0]

    def array(self, keep: Keep, dense: Callable[[Any], Any]) -> Array:
        """Evaluate it, once for all its uses."""
        if self._array is None:
            weight, scale, shift = self.operands[self.which], self.scale, self.shift
            operands = [None if i == self.which else dense(v) for i, v in enumerate(self.operands)]
            if scale is None:
                operands[self.which] = weight.array(keep)
            else:
                operands[self.which] = keep(f"{self.name}/kernel", lambda: self._scaled(weight.compute(), scale()))
            [out] = _compat.bind(self.eqn.raw, operands)
            if shift is not None:
                out = out + keep(f"{self.name}/bias", lambda: shift().astype(self.aval.dtype))
            self._array = out
        return self._array

    def _scaled(self, weight: Array, scale: Array) -> Array:
        return (weight.astype(jnp.float32) * placed(scale, self.axes, weight.ndim)).astype(weight.dtype)

    def times(self, factor: Compute) -> Affine:
        """The same operation, its result multiplied."""
        scale, shift = self.scale, self.shift
        new_scale = factor if scale is None else lambda: scale() * factor()
        return self._then(new_scale, None if shift is None else lambda: shift() * factor())

    def plus(self, value: Compute) -> Affine:
        """The same operation, with something added to its result."""
        shift = self.shift
        return self._then(self.scale, value if shift is None else lambda: shift() + value())

    def _then(self, scale: Compute | None, shift: Compute | None) -> Affine:
        new = Affine(self.eqn, self.name, self.operands, self.which, self.axes)
        new.scale, new.shift = scale, shift
        return new


def placed(array: Any, axes: Mapping[int, int], rank: int) -> Any:
    """Lay an array out along other axes; its axes that are not given have size 1.

    Example:
      >>> placed(jnp.ones((1, 3, 2)), {1: 3, 2: 0}, 4).shape
      (2, 1, 1, 3)
    """
    order = sorted((axis for axis in axes if axis < array.ndim), key=lambda axis: axes[axis])
    rest = [axis for axis in range(array.ndim) if axis not in order]
    sizes = [1] * rank
    for axis in order:
        sizes[axes[axis]] = array.shape[axis]
    return array.transpose((*rest, *order)).reshape(sizes)


def start(eqn: Equation, name: str, values: Sequence[Any]) -> Affine | None:
    """Return a convolution or dot with a constant weight as an `Affine` without scale and shift, else None."""
    out = eqn.out_avals[0]
    which = [i for i, v in enumerate(values) if isinstance(v, Const) and v.of_variables and v.small == v.shape]
    if len(which) != 1 or not jnp.issubdtype(out.dtype, jnp.floating) or eqn.in_avals[which[0]].dtype != out.dtype:
        return None
    [side] = which
    if eqn.primitive == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        return Affine(eqn, name, values, 1, {numbers.out_spec[1]: numbers.rhs_spec[0]}) if side == 1 else None
    contracting, batch = eqn.params["dimension_numbers"]
    free = [
        [axis for axis in range(len(aval.shape)) if axis not in (*contracting[i], *batch[i])]
        for i, aval in enumerate(eqn.in_avals)
    ]
    first = len(batch[0]) + (len(free[0]) if side == 1 else 0)
    axes = {**dict(enumerate(batch[side])), **{first + i: axis for i, axis in enumerate(free[side])}}
    return Affine(eqn, name, values, side, axes)


def extend(eqn: Equation, values: Sequence[Any]) -> Affine | None:
    """Take an addition or multiplication by a constant into an `Affine`; None where that cannot be.

    It cannot be if the value is used elsewhere too, or if the constant varies along axes that the weight does not have.
    """
    which = [i for i, value in enumerate(values) if isinstance(value, Affine)]
    if len(which) != 1:
        return None
    lazy, rank = values[which[0]], len(values[which[0]].aval.shape)
    out = eqn.out_avals[0]
    if lazy.shared or (out.shape, out.dtype) != (lazy.aval.shape, lazy.aval.dtype):
        return None

    def minus() -> Array:
        return jnp.full((1,) * rank, -1.0, jnp.float32)

    if eqn.primitive == "neg":
        return lazy.times(minus)
    const = values[1 - which[0]]
    if not isinstance(const, Const) or (eqn.primitive == "div" and which == [1]):
        return None
    small = const.lined_up(rank)
    if small is None or any(size != 1 and axis not in lazy.axes for axis, size in enumerate(small)):
        return None

    def value() -> Array:
        return jnp.reshape(const.compute(), small).astype(jnp.float32)

    match eqn.primitive:
        case "mul":
            return lazy.times(value)
        case "div":
            return lazy.times(lambda: 1 / value())
        case "sub" if which == [0]:
            return lazy.plus(lambda: -value())
        case "sub":
            return lazy.times(minus).plus(value)
    return lazy.plus(value)
