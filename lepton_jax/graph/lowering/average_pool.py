"""A sum over windows, axis by axis; and the derivative of an average over windows, which is one too."""

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.lowering.windows import Window, by_axes


def can(site: Site) -> bool:
    """Whether it is such a sum, over windows of known lengths."""
    return site.primitive == "reduce_window_sum" and Window.fits(site)


def pays(site: Site) -> bool:
    """Whether windows overlap, as they do in the derivative."""
    params = site.params
    overlap = any(n > step for n, step in zip(params["window_dimensions"], params["window_strides"]))
    return overlap and sum(n > 1 for n in params["window_dimensions"]) > 1


def form(site: Site, x: Array) -> Array:
    """``sum over t of sum over u of x[o + t, p + u]``."""
    total = by_axes(site, x.astype(site.sums), jnp.zeros((), site.sums), jax.lax.add)
    return total.astype(site.result_dtype)


RULE = Rule(
    name="average pool",
    about="one axis after the other takes fewer steps; so in the derivative of an average",
    gain="2x-14x",
    can=can,
    pays=pays,
    form=form,
)
