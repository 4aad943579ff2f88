"""A convolution whose result has one position in space is one dot; so is the derivative of a 1x1 kernel."""

import math

import jax

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Convolution, Site


def can(site: Site) -> bool:
    """Whether all that is multiplied meets at one place of the result."""
    conv = site.convolution
    if conv is None or not conv.ungrouped or any(n != 1 for n in (*conv.out, *conv.holes)):
        return False
    meeting = [_range(conv, axis) for axis in range(len(conv.out))]
    # XLA multiplies with what is filled in, unless the kernel is the larger one: weights that are not finite show it.
    whole = meeting == [(0, n - 1) for n in conv.kernel] or conv.taps > math.prod(conv.image)
    return whole and None not in meeting


def pays(site: Site) -> bool:
    """Whether it is more than the dot that XLA sees by itself."""
    conv = site.convolution
    return conv is not None and math.prod(conv.image) > 1


def form(site: Site, x: Array, kernel: Array) -> Array:
    """``out[n, o] = sum over t, c: x[n, t * dilation - low, c] kernel[t, c, o]``, a dot over all that meets."""
    conv = site.convolution
    assert conv is not None
    for axis in range(len(conv.out)):
        met = _range(conv, axis)
        assert met is not None
        first, last = met
        dilation, low = conv.dilations[axis], conv.padding[axis][0]
        start, stop = first * dilation - low, last * dilation - low + 1
        x = jax.lax.slice_in_dim(x, start, stop, dilation, conv.space[axis])
        kernel = jax.lax.slice_in_dim(kernel, first, last + 1, 1, conv.kernel_axes[2 + axis])
    out = conv.dot(x, kernel, (((conv.x_axes[1], *conv.space), (conv.kernel_axes[1], *conv.kernel_axes[2:])), ((), ())))
    return conv.ordered(jax.lax.expand_dims(out, range(2, 2 + len(conv.out))), conv.out_axes)


def _range(conv: Convolution, axis: int) -> tuple[int, int] | None:
    """The first and the last tap that meet the image."""
    dilation, low, n = conv.dilations[axis], conv.padding[axis][0], conv.image[axis]
    first = max(0, -(-low // dilation))
    last = min(conv.kernel[axis] - 1, (n - 1 + low) // dilation)
    return (first, last) if first <= last else None


RULE = Rule(
    name="one position",
    about="a result of one position is one dot, such as the derivative of a 1x1 kernel",
    gain="1.5x-2.5x",
    can=can,
    pays=pays,
    form=form,
)
