"""A convolution whose kernel is larger than its image: the sum, over the taps that meet the image, of dots."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.filling import filled
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Site

_MOST_TAPS = 128
"""More dots than this compile for too long."""


def can(site: Site) -> bool:
    """Whether taps are few enough to have a dot each."""
    conv = site.convolution
    return conv is not None and conv.ungrouped and conv.taps <= _MOST_TAPS


def pays(site: Site) -> bool:
    """Whether XLA on CPU would exchange image and kernel (``rhs_reversal``), and run plain loops."""
    conv = site.convolution
    return conv is not None and conv.taps > math.prod(conv.image)


def form(site: Site, x: Array, kernel: Array) -> Array:
    """``out = sum over t: place_t(x_t kernel[t])``, where x_t are the inputs that tap t meets.

    No product with what is filled in around or between the inputs is computed. XLA's own form leaves them out too, so infinite
    weights give the same there.
    """
    conv = site.convolution
    assert conv is not None
    axes = conv.like_input(features_last=True)
    place_of = {axis: place for place, axis in enumerate(axes)}
    numbers = (((conv.x_axes[1],), (0 if conv.inputs_first else 1,)), ((), ()))
    total = None
    for tap in np.ndindex(*conv.kernel):
        meetings = conv.meetings(tap)
        if meetings is None:
            continue
        part = x
        config = [(0, 0, 0)] * x.ndim
        for axis, out_axis, n, m in zip(conv.space, conv.out_axes[2:], conv.out, meetings):
            part = jax.lax.slice_in_dim(part, m.at, m.at + (m.times - 1) * m.step + 1, m.step, axis)
            config[place_of[out_axis]] = (m.out, n - 1 - m.out - (m.times - 1) * m.out_step, m.out_step - 1)
        product = conv.dot(part, conv.at_tap(kernel, tap), numbers)
        placed = filled(product, jnp.zeros((), product.dtype), config)
        total = placed if total is None else total + placed
    if total is None:  # padding alone
        return jnp.zeros(site.result, site.result_dtype)
    return conv.ordered(total, axes)


RULE = Rule(
    name="small image",
    about="the kernel is larger than the image, so XLA exchanges them and runs plain loops",
    gain="20x-150x",
    can=can,
    pays=pays,
    form=form,
)
