"""A convolution of every channel by itself, and its derivative by the input: shifted products, added."""

import jax
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Site

_MOST_TAPS = 128


def can(site: Site) -> bool:
    """Whether every result is of one channel, and sums over more than one tap."""
    conv = site.convolution
    if conv is None or conv.batch_groups != 1 or conv.groups == 1:
        return False
    return conv.groups == conv.channels and 1 < conv.taps <= _MOST_TAPS


def pays(site: Site) -> bool:
    """It always does."""
    return True


def form(site: Site, x: Array, kernel: Array) -> Array:
    """``out = sum over t: shifted_t(x) kernel[t]``, element by element, in one loop."""
    conv = site.convolution
    assert conv is not None
    padded, total, channel = conv.padded(x), None, conv.x_axes[1]
    multiplier = conv.features // conv.channels
    shape = [1] * x.ndim
    shape[channel : channel + 1] = [conv.channels, multiplier]
    for tap in np.ndindex(*conv.kernel):
        weights = conv.at_tap(kernel, tap).reshape(shape).astype(site.sums)
        part = jax.lax.expand_dims(conv.under(padded, tap), [channel + 1]).astype(site.sums)
        product = part * weights
        total = product if total is None else total + product
    assert total is not None
    merged = jax.lax.reshape(total, (*total.shape[:channel], conv.features, *total.shape[channel + 2 :]))
    return conv.ordered(merged, conv.like_input())


RULE = Rule(
    name="depthwise",
    about="XLA runs a convolution of channels by themselves as plain loops",
    gain="10x-50x",
    can=can,
    pays=pays,
    form=form,
)
