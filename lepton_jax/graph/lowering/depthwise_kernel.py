"""The derivative of a depthwise convolution by its kernel: example after example, since what taps read then stays in cache.

XLA's own form multiplies every channel with every other and then with zeros, so that what is not finite spreads over channels.
Here it stays in its own.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.filling import filled
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Convolution, Site

_MOST_TAPS = 128


def can(site: Site) -> bool:
    """Whether it is a convolution over groups of the batch, one image each."""
    conv = site.convolution
    if conv is None or conv.batch_groups == 1 or conv.groups != 1:
        return False
    return conv.batch == conv.batch_groups and int(np.prod(conv.out)) <= _MOST_TAPS


def pays(site: Site) -> bool:
    """It always does."""
    return True


def form(site: Site, x: Array, kernel: Array) -> Array:
    """``out[t, c] = sum over n: sum over i: x[n, i + t, c] dy[n, i, c]``, the outer sum as a loop.

    In the derivative's convolution the channels are the batch of `x`, and the examples the features that are summed over; the
    "kernel" is the derivative by the result.
    """
    conv = site.convolution
    assert conv is not None
    # [examples, *space, channels] of both.
    x = jax.lax.transpose(x, (conv.x_axes[1], *conv.space, conv.x_axes[0]))
    dy = jax.lax.transpose(kernel, (conv.kernel_axes[1], *conv.kernel_axes[2:], conv.kernel_axes[0]))

    def step(total: Array, example: tuple[Array, Array]) -> tuple[Array, None]:
        image, cotangent = example
        return total + _one(conv, image, cotangent), None

    total = jnp.zeros((int(np.prod(conv.out)), conv.features), site.sums)
    # What varies over the devices of a shard_map must do so from the start.
    total = total + (0 * dy[(0,) * (dy.ndim - 1)]).astype(site.sums)[None] if _varies(dy) else total
    total, _ = jax.lax.scan(step, total, (x, dy))
    out = jax.lax.expand_dims(total.reshape(*conv.out, conv.features), [0])
    axes = [conv.out_axes[0], *conv.out_axes[2:], conv.out_axes[1]]
    return conv.ordered(out, axes)


def _one(conv: Convolution, image: Array, cotangent: Array) -> Array:
    """The sums of one example: ``[*taps, channels]``; a loop over the taps' rows, for there may be many."""
    zero = jnp.zeros((), image.dtype)
    config = [*((low, high, hole - 1) for (low, high), hole in zip(conv.padding, conv.holes)), (0, 0, 0)]
    image = filled(image, zero, config)
    multiplier = conv.features // image.shape[-1]
    image = jnp.repeat(image, multiplier, -1) if multiplier > 1 else image
    cotangent = cotangent.astype(conv.site.sums)
    spans = [(n - 1) * dilation + 1 for n, dilation in zip(conv.kernel, conv.dilations)]

    def row(_: None, number: Array) -> tuple[None, Array]:
        rows = jax.lax.dynamic_slice_in_dim(image, number * conv.strides[0], spans[0], 0)[:: conv.dilations[0]]
        sums = []
        for place in np.ndindex(*conv.out[1:]):
            starts = [p * stride for p, stride in zip(place, conv.strides[1:])]
            limits = [start + span for start, span in zip(starts, spans[1:])]
            window = jax.lax.slice(rows, (0, *starts, 0), (rows.shape[0], *limits, conv.features), (1, *conv.dilations[1:], 1))
            sums.append(jnp.sum(window.astype(conv.site.sums) * cotangent, axis=tuple(range(len(conv.out)))))
        return None, jnp.stack(sums)

    return jax.lax.scan(row, None, jnp.arange(conv.out[0]))[1].reshape(-1, conv.features)


def _varies(array: Array) -> bool:
    kind = jax.typeof(array)
    found = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", ())
    return bool(found)


RULE = Rule(
    name="depthwise kernel",
    about="XLA runs the derivative of a depthwise kernel as plain loops",
    gain="3x-25x",
    can=can,
    pays=pays,
    form=form,
)
