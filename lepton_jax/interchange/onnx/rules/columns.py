"""Images put together from the columns of their windows."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.host import integers
from lepton_jax.interchange.onnx.rules.windows import along, pads_of
from lepton_jax.interchange.onnx.site import Rule, Site


def col2im(site: Site, x: Any, image: Any, block: Any) -> Any:
    """``x[N, C prod(block), windows]`` as ``[N, C, *image]``: what windows have in common is added up."""
    sizes, kernel = integers(image), integers(block)
    n = len(sizes)
    strides, dilations = along(site, "strides", n), along(site, "dilations", n)
    pads = pads_of(site, sizes, kernel, strides, dilations)
    whole = [size + a + z for size, (a, z) in zip(sizes, pads)]
    counts = [(size - (k - 1) * d - 1) // s + 1 for size, k, d, s in zip(whole, kernel, dilations, strides)]
    if x.shape[2] != math.prod(counts) or min(counts) < 1 or x.shape[1] % math.prod(kernel):
        raise ValueError(f"{x.shape[1]} rows and {x.shape[2]} windows for {counts} windows of {kernel}")
    site.room((x.shape[0], x.shape[1] // math.prod(kernel), *whole), x.dtype)
    rows = x.reshape(x.shape[0], -1, math.prod(kernel), *counts)
    y = jnp.zeros((*rows.shape[:2], *whole), x.dtype)
    for number, place in enumerate(np.ndindex(*kernel)):
        window = [slice(at * d, at * d + (count - 1) * s + 1, s) for at, d, count, s in zip(place, dilations, counts, strides)]
        y = y.at[(slice(None), slice(None), *window)].add(rows[:, :, number])
    return y[(slice(None), slice(None), *(slice(a, size - z) for size, (a, z) in zip(whole, pads)))]


RULES: dict[str, Rule] = {"Col2Im": Rule(col2im, host=(1, 2))}
