"""Windows over the axes of an array, as `jax.lax.reduce_window` has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.filling import filled
from lepton_jax.graph.lowering.site import Site

_LONGEST, _MOST = 32, 128


class Window:
    """Which windows there are shifted forms of."""

    @staticmethod
    def fits(site: Site) -> bool:
        """Whether the axes that windows run along have known lengths, and windows are short."""
        params = site.params
        sizes = params["window_dimensions"]
        plain = [1] * len(sizes)
        moving = zip(site.shapes[-1], sizes, params["window_strides"], params.get("base_dilation", plain), params["padding"])
        known = all(isinstance(n, int) or (*rest, tuple(pad)) == (1, 1, 1, (0, 0)) for n, *rest, pad in moving)
        return known and max(sizes, default=1) <= _LONGEST and math.prod(sizes) <= _MOST


def by_axes(site: Site, x: Array, empty: Array, join: Callable[[Array, Array], Array]) -> Array:
    """Join the elements of every window, along one axis after the other.

    Args:
      site: a reduction over windows.
      x: its operand.
      empty: what is filled in.
      join: an associative operation of two arrays.
    """
    params = site.params
    config = [(low, high, hole - 1) for (low, high), hole in zip(params["padding"], params["base_dilation"])]
    x = filled(x, empty, config)
    lengths = zip(params["window_dimensions"], params["window_dilation"], params["window_strides"], site.result)
    for axis, (size, dilation, stride, n) in enumerate(lengths):
        if size > 1 or stride > 1:
            x = _along(x, axis, [i * dilation for i in range(size)], (n - 1) * stride + 1, stride, join)
    return x


def _along(x: Array, axis: int, starts: Sequence[int], span: int, stride: int, join: Callable[[Array, Array], Array]) -> Array:
    parts = [jax.lax.slice_in_dim(x, start, start + span, stride, axis) for start in starts]
    total = parts[0]
    for part in parts[1:]:
        total = join(total, part)
    return total
