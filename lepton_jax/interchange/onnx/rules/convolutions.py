"""Convolutions and their transposes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from lepton_jax.interchange.onnx.rules.windows import along, pads_of
from lepton_jax.interchange.onnx.site import Rule, Site

_SPATIAL = "DHWXYZ"


def _letters(n: int) -> str:
    return _SPATIAL[3 - n : 3] if n <= 3 else _SPATIAL[:n]


def convolve(site: Site, x: Any, w: Any, bias: Any = None) -> Any:
    """A convolution of (batch, channels, ...); the kernel (out, in, ...), or as it is stored here, (..., in, out)."""
    n = x.ndim - 2
    stored, letters = site.node.stored, _letters(n)
    kernel = w.shape[:n] if stored else w.shape[2:]
    strides, dilations = along(site, "strides", n), along(site, "dilations", n)
    y = lax.conv_general_dilated(
        x,
        w.astype(x.dtype),
        strides,
        pads_of(site, x.shape[2:], kernel, strides, dilations),
        rhs_dilation=dilations,
        feature_group_count=site.get("group", 1),
        dimension_numbers=(f"NC{letters}", f"{letters}IO" if stored else f"OI{letters}", f"NC{letters}"),
    )
    return with_bias(y, bias)


def with_bias(y: Any, bias: Any) -> Any:
    """A number a channel added."""
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * (y.ndim - 2))


def convolve_transposed(site: Site, x: Any, w: Any, bias: Any = None) -> Any:
    """The transpose of a convolution; the kernel (in, out / groups, ...), or as it is stored here, (..., in, out / groups)."""
    n, groups = x.ndim - 2, site.get("group", 1)
    letters = _letters(n)
    if not site.node.stored:
        w = jnp.moveaxis(w, (0, 1), (n, n + 1))
    kernel, (inputs, outputs) = w.shape[:n], w.shape[n:]
    strides, dilations = along(site, "strides", n), along(site, "dilations", n)
    extra = along(site, "output_padding", n, 0)
    pads = _pads(site, x.shape[2:], kernel, strides, dilations, extra)
    w = jnp.flip(w, tuple(range(n)))
    if groups > 1:  # (..., groups, in / groups, out / groups): the groups of what comes out go first
        w = w.reshape(*kernel, groups, inputs // groups, outputs)
        w = jnp.moveaxis(w, n, n + 1).reshape(*kernel, inputs // groups, groups * outputs)
    y = lax.conv_general_dilated(
        x,
        w.astype(x.dtype),
        [1] * n,
        [((k - 1) * d - a, (k - 1) * d - z + e) for k, d, (a, z), e in zip(kernel, dilations, pads, extra)],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=groups,
        dimension_numbers=(f"NC{letters}", f"{letters}IO", f"NC{letters}"),
    )
    return with_bias(y, bias)


def _pads(site: Site, sizes: Any, kernel: Any, strides: Any, dilations: Any, extra: Any) -> list[tuple[Any, Any]]:
    """What is cut from each side of the whole result."""
    n, auto, wanted = len(kernel), site.get("auto_pad", "NOTSET"), site.get("output_shape")
    if wanted is None and auto not in ("SAME_UPPER", "SAME_LOWER"):
        return pads_of(site, sizes, kernel, strides, dilations)
    wanted = [size * stride for size, stride in zip(sizes, strides)] if wanted is None else list(wanted)[-n:]
    out = []
    for size, k, stride, dilation, more, length in zip(sizes, kernel, strides, dilations, extra, wanted):
        total = stride * (size - 1) + more + (k - 1) * dilation + 1 - length
        total = max(total, 0) if auto != "NOTSET" else total
        small = total // 2
        # As the standard has it: an odd one goes behind for SAME_UPPER, before for all others.
        out.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    return out


RULES: dict[str, Rule] = {
    "Conv": Rule(convolve),
    "ConvTranspose": Rule(convolve_transposed),
}
