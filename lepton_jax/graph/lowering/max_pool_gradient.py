"""The derivative of a maximum over windows: each cotangent goes to the first of its window that is largest."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.filling import filled
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.lowering.windows import Window


def can(site: Site) -> bool:
    """Whether it is the derivative of a maximum, over windows of known lengths."""
    if site.primitive != "select_and_scatter_add" or str(site.params["select_prim"]) != "ge":
        return False
    return Window.fits(site)


def pays(site: Site) -> bool:
    """It always does."""
    return True


def form(site: Site, source: Array, operand: Array) -> Array:
    """Walk through the windows, all at once, tap after tap, as XLA walks through each.

    A tap takes over unless ``held >= value``, so that a value that is not a number is taken, and leaves at the next. What is
    filled in around is never taken. Cotangents of overlapping windows are added in XLA's order: the same bits.
    """
    sizes, strides, padding = (site.params[name] for name in ("window_dimensions", "window_strides", "padding"))
    taps = list(np.ndindex(*sizes))

    def found(source: Array, operand: Array) -> list[Array]:
        chosen = _chosen(site, source, operand)
        return [jnp.where(chosen == number, source, jnp.zeros((), source.dtype)) for number in range(len(taps))]

    if tuple(sizes) == tuple(strides) and not any(map(any, padding)) and _whole(operand.shape, sizes):
        return _interleaved(found(source, operand), sizes, operand.shape)
    with set_xla_metadata(inlineable="false"):  # fused into the placing, they would be found anew for every tap
        parts = jax.jit(found)(source, operand)
    total = None
    lengths = [n + low + high for n, (low, high) in zip(operand.shape, padding)]
    spans = [(n - 1) * step + 1 for n, step in zip(source.shape, strides)]
    for tap, part in reversed(list(zip(taps, parts))):
        ends = [n - t - span for n, t, span in zip(lengths, tap, spans)]
        placed = jax.lax.pad(part, jnp.zeros((), part.dtype), [(t, e, s - 1) for t, e, s in zip(tap, ends, strides)])
        total = placed if total is None else total + placed
    starts = [low for low, _ in padding]
    assert total is not None
    return jax.lax.slice(total, starts, [s + n for s, n in zip(starts, operand.shape)])


def _chosen(site: Site, source: Array, operand: Array) -> Array:
    """The number of the tap that each window takes."""
    sizes, strides, padding = (site.params[name] for name in ("window_dimensions", "window_strides", "padding"))
    lowest = -jnp.inf if jnp.issubdtype(operand.dtype, jnp.floating) else jnp.iinfo(operand.dtype).min
    around = [(low, high, 0) for low, high in padding]
    padded = filled(operand, jnp.asarray(lowest, operand.dtype), around)
    spans = [(n - 1) * step + 1 for n, step in zip(source.shape, strides)]
    taps = list(np.ndindex(*sizes))
    started: Any = None
    for number, tap in enumerate(taps):
        value = jax.lax.slice(padded, tap, [t + span for t, span in zip(tap, spans)], strides)
        inside = _inside(tap, source.shape, strides, padding, operand.shape)
        if started is None:
            held, chosen, started = value, jnp.zeros(source.shape, jnp.uint8), inside
            continue
        take = ~(held >= value)
        take = take if started is True else take | ~started
        take = take if inside is True else take & inside
        held, chosen = jnp.where(take, value, held), jnp.where(take, jnp.uint8(number), chosen)
        started = True if started is True or inside is True else started | inside
    return chosen


def _inside(
    tap: Sequence[int], shape: Sequence[Any], strides: Sequence[int], padding: Sequence[Any], limits: Sequence[Any]
) -> Any:
    """Where a tap meets the operand and not what is filled in; True if everywhere."""
    inside: Any = True
    for axis, (t, n, step, (low, _), limit) in enumerate(zip(tap, shape, strides, padding, limits)):
        if not isinstance(n, int):
            continue
        met = np.arange(n) * step + t - low
        met = (met >= 0) & (met < limit)
        if not met.all():
            own = jax.lax.broadcast_in_dim(jnp.asarray(met), shape, (axis,))
            inside = own if inside is True else inside & own
    return inside


def _whole(shape: Sequence[Any], sizes: Sequence[int]) -> bool:
    return all(size == 1 or n % size == 0 for n, size in zip(shape, sizes))


def _interleaved(parts: list[Array], sizes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Put the parts of every tap in their places between one another."""
    n = len(shape)
    stacked = jnp.stack(parts).reshape(*sizes, *parts[0].shape)
    order = [axis for i in range(n) for axis in (n + i, i)]
    return jnp.transpose(stacked, order).reshape(shape)


RULE = Rule(
    name="max pool gradient",
    about="XLA visits the windows one by one (select and scatter)",
    gain="8x-25x",
    can=can,
    pays=pays,
    form=form,
)
