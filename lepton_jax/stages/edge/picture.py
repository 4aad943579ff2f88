"""Latency against bandwidth as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.extras import pyplot
from lepton_jax.stages.edge.choose import Link, choose
from lepton_jax.stages.edge.profile import Profile
from lepton_jax.stages.edge.wire import Wire
from lepton_jax.stages.plan import Plan


@checked
def draw(
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    edge: Profile,
    cloud: Profile,
    rtt_ms: float = 0.0,
    wire: Wire | None = None,
    mbits: Sequence[float] = tuple(np.geomspace(0.1, 1000, 41).tolist()),
) -> None:
    """Draw latency against bandwidth, a line for each way to share the work.

    Args:
      plan: of the model.
      path: of a picture, .png, .svg or .pdf.
      edge: as for `choose`.
      cloud: likewise.
      rtt_ms: of the link.
      wire: as for `choose`.
      mbits: the bandwidths.

    Example:
      >>> import jax.numpy as jnp, tempfile
      >>> from lepton_jax import stages
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> plan = stages.plan(net, v, jnp.ones((20, 4)), count=2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     draw(plan, f"{folder}/latency.svg", edge=Profile(seconds=(1.0, 1.0)), cloud=Profile(seconds=(0.1, 0.1)))
      ...     print(os.listdir(folder))
      ['latency.svg']
    """
    plt = pyplot()

    all_options = [choose(plan, edge=edge, cloud=cloud, link=Link(mbit, rtt_ms), wire=wire).options for mbit in mbits]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    try:
        for one in range(len(all_options[0])):
            is_cut = 0 < all_options[0][one].place < len(plan)
            latency = [1e3 * options[one].seconds for options in all_options]
            axes.plot(mbits, latency, label=all_options[0][one].name, lw=1.2 if is_cut else 2, ls="-" if is_cut else "--")
        axes.set(
            xscale="log", yscale="log", xlabel="bandwidth, Mbit/s", ylabel="latency, ms", title="From the input to the answer"
        )
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, bbox_inches="tight", dpi=150)
    finally:
        plt.close(figure)
