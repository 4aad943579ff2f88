"""Paddings of what slides over images, in one place for convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lepton_jax.interchange.onnx.site import Site

Pads = list[tuple[Any, Any]]


def pads_of(site: Site, sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Pads:
    """The padding before and behind each axis.

    Args:
      site: of the node.
      sizes: lengths of the spatial axes.
      kernel, strides, dilations: along each.
    """
    n, auto = len(kernel), site.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        out: Pads = []
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations):
            windows = -(-size // stride)
            total = (windows - 1) * stride + (k - 1) * dilation + 1 - size
            total = max(total, 0) if isinstance(total, int) else total
            small = total // 2
            out.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
        return out
    pads = site.get("pads", [0] * (2 * n))
    if len(pads) != 2 * n:
        raise ValueError(f"pads {pads} for {n} axes")
    return list(zip(pads[:n], pads[n:]))


def along(site: Site, name: str, n: int, default: int = 1) -> list[int]:
    """An attribute of one number for each spatial axis."""
    found = list(site.get(name, [default] * n))
    if len(found) != n:
        raise ValueError(f"{name} {found} for {n} spatial axes")
    if name in ("strides", "dilations", "kernel_shape") and min(found, default=1) < 1:
        raise ValueError(f"{name} {found}; they are 1 or more")
    return found


def last_pads(
    sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Pads
) -> Pads:
    """Padding with room for a last window that is not whole, as `ceil_mode` has it; none of it begins in the padding."""
    out: Pads = []
    for size, k, stride, dilation, (a, z) in zip(sizes, kernel, strides, dilations, pads):
        whole = size + a + z - (k - 1) * dilation - 1
        windows = -(-whole // stride) + 1
        if isinstance(windows, int) and (windows - 1) * stride >= size + a:
            windows -= 1
        out.append((a, z + max((windows - 1) * stride - whole, 0) if isinstance(windows, int) else z))
    return out


def count(shape: Sequence[int]) -> int:
    """Elements of a window.

    Example:
      >>> count((2, 3))
      6
    """
    return math.prod(shape)
