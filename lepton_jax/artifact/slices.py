"""Slices that jax writes as gathers where an axis has no known length, turned back.

``x[:, ::2]`` of a batch of any length is traced as a gather by indices that are computed from nothing, of a batch of known
length as a slice. XLA fuses the two otherwise, so that last bits differ, and slices are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.primitives import INLINED, names
from lepton_jax.graph.trace import CallPath, Equation, Traced, trace

_FOLDED = names("iota mul add sub broadcast_in_dim concatenate rev select_n lt convert_element_type reshape squeeze")
_MOST = 1 << 16
"""Elements of the indices that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The slice that a gather is: of each axis of the operand, and which of them are dropped.

    Example:
      >>> Slice(starts=(0, 1), sizes=(3, 1), strides=(1, 1), dropped=(1,)).dropped
      (1,)
    """

    starts: tuple[int, ...]
    sizes: tuple[Any, ...]
    """How many indices are taken; symbolic where all are."""
    strides: tuple[int, ...]
    dropped: tuple[int, ...]

    def __call__(self, value: Any) -> Any:
        cuts = zip(self.starts, self.sizes, self.strides)
        limits = [start + (size - 1) * stride + 1 for start, size, stride in cuts]
        strides = self.strides if any(stride != 1 for stride in self.strides) else None
        if strides is not None or tuple(self.sizes) != tuple(value.shape):
            value = jax.lax.slice(value, self.starts, limits, strides)
        return jax.lax.squeeze(value, self.dropped) if self.dropped else value


def with_slices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with slices in place of the gathers that are slices; the function itself if there are none.

    Args:
      function: ``function(variables, *inputs)``, to be traced.

    Example:
      >>> import jax.numpy as jnp
      >>> with_slices(lambda v, x: x[::2] * v)(jnp.ones(()), jnp.arange(4.0)).tolist()
      [0.0, 2.0]
    """

    def run(variables: Any, *inputs: Any) -> Any:
        try:
            traced = trace(function, variables, *inputs)
        except Exception:  # whatever the traced operations raise: the function says it itself
            return function(variables, *inputs)
        found = _Gathers(traced).slices
        return _Slicing(traced, found)(variables, *inputs) if found else function(variables, *inputs)

    return run


class _Slicing(Interpreter):
    def __init__(self, traced: Traced, slices: dict[CallPath, Slice]):
        super().__init__(traced)
        self.slices = slices

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        found = self.slices.get(eqn.path)
        return None if found is None else [found(values[0])]


class _Gathers(Forward[np.ndarray | None]):
    """Follows small integers that depend on nothing, and finds the gathers by them that are slices."""

    def __init__(self, traced: Traced):
        super().__init__()
        self.slices: dict[CallPath, Slice] = {}
        self.body(traced.jaxpr, traced.consts, [None] * len(traced.jaxpr.invars))

    def constant(self, value: Any) -> np.ndarray | None:
        known = isinstance(value, int | np.ndarray | np.generic)
        return np.asarray(value) if known and np.asarray(value).dtype.kind in "iub" and np.size(value) <= _MOST else None

    def call(self, eqn: Equation, given: list[np.ndarray | None]) -> Sequence[np.ndarray | None]:
        if eqn.primitive in INLINED:
            return super().call(eqn, given)
        for body in eqn.bodies:
            self.inside(eqn, body, [None] * len(body.operands))
        return [None] * len(eqn.outvars)

    def operation(self, eqn: Equation, given: list[np.ndarray | None]) -> Sequence[np.ndarray | None]:
        if eqn.primitive == "gather" and given[1] is not None:
            found = slice_of(eqn, given[1])
            self.slices |= {} if found is None else {eqn.path: found}
        [out, *_] = eqn.out_avals or [None]
        small = out is not None and all(isinstance(n, int) for n in out.shape) and np.prod(out.shape, initial=1) <= _MOST
        if (
            eqn.primitive not in _FOLDED
            or not small
            or getattr(out.dtype, "kind", "?") not in "iub"
            or any(one is None for one in given)
        ):
            return [None] * len(eqn.outvars)
        with jax.ensure_compile_time_eval():
            return [np.asarray(one) for one in _compat.bind(eqn.raw, given)]


def slice_of(eqn: Equation, indices: np.ndarray) -> Slice | None:
    """The slice that a gather by these indices is, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> graph = trace(lambda v, x: x[:, jnp.array([1, 3])], {}, jnp.ones((2, 5)))
      >>> [gather] = [eqn for eqn in graph.equations() if eqn.primitive == "gather"]
      >>> slice_of(gather, np.array([[1], [3]]))
      Slice(starts=(0, 1), sizes=(2, 2), strides=(1, 2), dropped=())
    """
    numbers, shape = eqn.params["dimension_numbers"], eqn.in_avals[0].shape
    if numbers.operand_batching_dims:
        return None
    starts, sizes, strides = [0] * len(shape), list(eqn.params["slice_sizes"]), [1] * len(shape)
    along: dict[int, int] = {}
    for column, axis in enumerate(numbers.start_index_map):
        run = _run(indices[..., column])
        if run is None or (run[0] is not None and (run[0] in along.values() or axis not in numbers.collapsed_slice_dims)):
            return None
        place, starts[axis], strides[axis], count = run
        if place is not None:
            along[axis], sizes[axis] = place, count
        last = starts[axis] + (sizes[axis] - 1) * strides[axis] if isinstance(sizes[axis], int) else None
        if starts[axis] < 0 or last is None or not (last < shape[axis] if isinstance(shape[axis], int) else last == 0):
            return None
    batch = [axis for axis in range(len(eqn.out_avals[0].shape)) if axis not in numbers.offset_dims]
    dropped = tuple(axis for axis in numbers.collapsed_slice_dims if axis not in along)
    offsets = iter(numbers.offset_dims)
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    places = [batch[along[axis]] if axis in along else next(offsets) for axis in kept]
    if places != list(range(len(eqn.out_avals[0].shape))):
        return None
    return Slice(starts=tuple(starts), sizes=tuple(sizes), strides=tuple(strides), dropped=dropped)


def _run(values: np.ndarray) -> tuple[int | None, int, int, int] | None:
    """(the axis along which values rise evenly, or None if all are one; the first; the step; how many), or None."""
    moving = [axis for axis, n in enumerate(values.shape) if n > 1 and (np.diff(values, axis=axis) != 0).any()]
    if len(moving) > 1 or not values.size:
        return None
    first = int(values.flat[0])
    if not moving:
        return None, first, 1, 1
    line = np.moveaxis(values, moving[0], 0).reshape(values.shape[moving[0]], -1)[:, 0]
    steps = np.unique(np.diff(line))
    return (moving[0], first, int(steps[0]), len(line)) if len(steps) == 1 and steps[0] > 0 else None
