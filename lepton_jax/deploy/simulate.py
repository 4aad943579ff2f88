"""An engine's own arithmetic in jax: sums of whole numbers, scaled and rounded as ONNX Runtime does it.

What a layer gives is ``clip(round(a (sx sw / sy)), -z, 255 - z) + z``, of the whole number ``a``: the sum of products of codes
and of the bias in steps of ``sx sw``. It is a whole number of at most 32 bits, so that no order of summation can change it;
scales are multiplied in float32, in the engine's order. An addition is a table of all 65,536 pairs of codes.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference", eq. 2
to 7; the order of operations is that of ONNX Runtime's kernels, found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.deploy.at_sites import AtSites
from lepton_jax.deploy.sites import Grid, Site, is_absorbed, is_rectifier
from lepton_jax.deploy.weights import bias_codes, in_codes
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation, Traced

_EXACT = 2**24
"""Whole numbers up to it are exact in float32."""
_BARRIER: Callable[[Any], Any] = jax.lax.optimization_barrier


@dataclass(frozen=True, eq=False)
class Codes:
    """A rounded value: ``(codes - zero_point) * scale``, codes as int32."""

    codes: Array
    grid: Grid

    def numbers(self) -> Array:
        """Whole numbers, of which the scale is a factor."""
        return self.codes - self.grid.zero_point


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of products of codes, int32, and the scales of each output."""

    sums: Array
    x_scale: np.float32
    w_scale: np.ndarray
    axes: tuple[int, ...]
    """The axes of the outputs, along which scales differ; of a convolution its channels."""
    has_bias: bool = False

    def along(self, scale: np.ndarray) -> np.ndarray:
        """Scales with the axes of the sums."""
        shape = [self.sums.shape[axis] if axis in self.axes else 1 for axis in range(self.sums.ndim)]
        return np.broadcast_to(scale.reshape(-1), (math.prod(shape),)).reshape(shape)

    @property
    def scale(self) -> np.ndarray:
        """Of each output, float32."""
        return (self.x_scale * self.w_scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Added:
    """An addition of two rounded values that is not yet rounded."""

    left: Codes
    right: Codes


class Simulating(AtSites):
    """Evaluates a graph as an engine of eight bits does.

    Args:
      traced: the graph, in one piece.
      sites: which values are rounded.
      grids: how.
      largest: of weights' codes.

    Attributes:
      seen: the codes of every site.
    """

    def __init__(self, traced: Traced, sites: Mapping[str, Site], grids: Mapping[str, Grid], largest: int):
        super().__init__(traced, sites, grids, largest)
        self.seen: dict[str, Array] = {}

    def dense(self, value: Any) -> Any:
        match value:
            case Codes():
                return value.numbers().astype(jnp.float32) * value.grid.scale
            case Sums():
                return value.sums.astype(jnp.float32) * value.along(value.scale)
            case Added():
                return self.dense(value.left) + self.dense(value.right)
        return value

    def round(self, var: Any, value: Any) -> Any:
        """A value as codes, if it is at a site."""
        site = self.at.get(var)
        if site is None or isinstance(value, Codes):
            return self._seen(site, value)
        grid = self.grids[site.of]
        low, high = np.float32(-grid.zero_point), np.float32(255 - grid.zero_point)
        match value:
            case Sums():
                factor = value.along((value.scale / grid.scale).astype(np.float32))
                steps = jnp.round(jnp.clip(value.sums.astype(jnp.float32) * factor, low, high))
                codes = steps.astype(jnp.int32) + grid.zero_point
            case Added():
                table = jnp.asarray(added(value.left.grid, value.right.grid, grid))
                codes = table[value.left.codes, value.right.codes]
            case _:
                # A true division, as engines have it: by one scale for all, compilers multiply by its reciprocal.
                steps = value / _BARRIER(jnp.full(value.shape, grid.scale, jnp.float32))
                codes = jnp.round(jnp.clip(steps, low, high)).astype(jnp.int32) + grid.zero_point
        return self._seen(site, Codes(codes, grid))

    def _seen(self, site: Site | None, value: Any) -> Any:
        if site is not None and isinstance(value, Codes):
            self.seen[site.name] = value.codes
        return value

    def done(self, eqn: Equation, values: list[Any]) -> list[Any] | None:
        first = values[0] if values else None
        if self.graph.is_weighted(eqn) and isinstance(first, Codes):
            return [self._product(eqn, first, values[1])]
        if eqn.primitive == "add":
            return self._sum(values)
        for value in values:
            if isinstance(value, Sums | Added) and is_rectifier(eqn):
                return [self._rectified(eqn, value)]
        if isinstance(first, Codes) and self.graph.is_move(eqn):
            return self._moved(eqn, values)
        if isinstance(first, Codes) and eqn.primitive in ("reduce_sum", "reduce_window_sum"):
            return self._total(eqn, first)
        return None

    def _rectified(self, eqn: Equation, value: Any) -> Any:
        site = self.graph.site_after(eqn, self.at)
        if site is None or not is_absorbed(eqn, self.grids[site.of]):
            return self._plain(eqn, value)
        return value  # codes have the bounds of their range

    def _plain(self, eqn: Equation, value: Any) -> Any:
        given = [_compat.literal_value(v) if _compat.is_literal(v) else self.dense(value) for v in eqn.invars]
        return _compat.bind(eqn.raw, given)[0]

    def _moved(self, eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
        first = values[0]
        if eqn.primitive == "reduce_window_max":
            # Padding is minus infinity: the least of all codes.
            return [Codes(jnp.asarray(self.bind(eqn, [first.codes.astype(jnp.float32)])[0]).astype(jnp.int32), first.grid)]
        if eqn.primitive == "pad":
            values = [first, np.int32(first.grid.zero_point)]
        return [Codes(self.bind(eqn, [first.codes, *values[1:]])[0], first.grid)]

    def _sum(self, values: Sequence[Any]) -> list[Any] | None:
        left, right = values
        if isinstance(left, Codes) and isinstance(right, Codes):
            return [Added(left, right)]
        for sums, bias in ((left, right), (right, left)):
            if isinstance(sums, Sums) and not sums.has_bias and not isinstance(bias, Sums | Codes | Added):
                shape = [sums.sums.shape[axis] if axis in sums.axes else 1 for axis in range(sums.sums.ndim)]
                if np.ndim(bias) == sums.sums.ndim and all(n in (1, m) for n, m in zip(np.shape(bias), shape)):
                    steps = bias_codes(np.broadcast_to(np.asarray(bias), shape), sums.along(sums.scale))
                    return [replace(sums, sums=sums.sums + steps, has_bias=True)]
        return None

    def _total(self, eqn: Equation, value: Codes) -> list[Any] | None:
        if eqn.primitive == "reduce_window_sum":
            if any(low or high for low, high in eqn.params["padding"]):
                return None
            count = math.prod(eqn.params["window_dimensions"])
        else:
            count = math.prod(value.codes.shape[axis] for axis in eqn.params["axes"])
        [total] = self.bind(eqn, [value.codes.astype(jnp.float32)])
        total = _BARRIER(total - np.float32(count * value.grid.zero_point))
        return [_BARRIER(total * value.grid.scale)]

    def _product(self, eqn: Equation, x: Codes, weight: Any) -> Sums:
        coded = in_codes(eqn, np.asarray(weight), self.largest)
        wide: dict[str, Any] = {"preferred_element_type": np.dtype(np.float32)}
        numbers = x.numbers()
        summed = tuple(axis for axis, size in enumerate(coded.scale.shape) if size == 1 and coded.shape[axis] != 1)
        most = np.abs(coded.codes.astype(np.int64)).sum(summed).max(initial=0)
        kernel = jnp.asarray(coded.codes, jnp.float32)

        def multiplied(part: Array) -> Array:
            return _compat.bind(eqn.raw, [part.astype(jnp.float32), kernel], **wide)[0].astype(jnp.int32)

        if most * 255 < _EXACT:
            sums = multiplied(numbers)
        else:  # in two parts of four bits, whose sums float32 holds
            sums = multiplied(numbers >> 4) * 16 + multiplied(numbers & 15)
        if eqn.primitive == "conv_general_dilated":
            axes: tuple[int, ...] = (eqn.params["dimension_numbers"].out_spec[1],)
        else:
            free = len(coded.shape) - len(eqn.params["dimension_numbers"][0][1])
            axes = tuple(range(sums.ndim - free, sums.ndim))
        return Sums(sums, x.grid.scale, coded.scale.reshape(-1), axes)


def added(left: Grid, right: Grid, out: Grid) -> np.ndarray:
    """The codes of all sums of two codes, as ONNX Runtime's `QLinearAdd` gives them.

    Two multiplications and additions that are rounded once each, and one sum of constants.

    Args:
      left: how the first is rounded.
      right: the second.
      out: the sum.

    Returns:
      int32, of shape (256, 256).

    Example:
      >>> int(added(Grid(np.float32(1), 0), Grid(np.float32(1), 0), Grid(np.float32(2), 0))[3, 4])
      4
    """

    def fused(x: np.ndarray, y: Any, z: Any) -> np.ndarray:
        return (x.astype(np.float64) * np.float64(y) + np.asarray(z, np.float64)).astype(np.float32)

    codes = np.arange(256, dtype=np.float32)
    first, second = np.float32(left.scale / out.scale), np.float32(right.scale / out.scale)
    inner = np.float32(second * np.float32(right.zero_point))
    fixed = np.float32(np.float64(out.zero_point) - (np.float64(first) * left.zero_point + np.float64(inner)))
    steps = fused(codes[:, None], first, fused(codes, second, fixed)[None, :])
    return np.clip(np.rint(steps), 0, 255).astype(np.int32)
