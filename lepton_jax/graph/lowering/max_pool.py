"""A maximum over windows, axis by axis: the same bits."""

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.lowering.windows import Window, by_axes


def can(site: Site) -> bool:
    """Whether it is such a maximum, over windows of known lengths."""
    return site.primitive == "reduce_window_max" and Window.fits(site)


def pays(site: Site) -> bool:
    """Whether windows are of two axes or more."""
    return sum(n > 1 for n in site.params["window_dimensions"]) > 1


def form(site: Site, x: Array) -> Array:
    """``max over t of max over u of x[o + t, p + u]``."""
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return by_axes(site, x, jnp.asarray(lowest, x.dtype), jax.lax.max)


RULE = Rule(
    name="max pool", about="one axis after the other takes fewer steps", gain="1.5x-2.5x", can=can, pays=pays, form=form
)
