"""LoRA: train a low-rank correction of fixed weights."""

from functools import partial

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, Select
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank.adapters import adapter, corrected


@checked
@named
def lora(
    rank: int,
    key: Array,
    *,
    scale: float = 1.0,
    select: Select = paths.matrices,
    train: Select = (),
    stacked: int = 0,
) -> Transform:
    """Train a correction of low rank for each selected weight, and nothing else: ``view = W + scale * u v``.

    u begins normal, v zero: the first view is the model itself. The weights lie in the transform's state, out of reach of any
    optimiser, its momentum and its decay; so do the leaves that are neither adapted nor in `train`. In the parameters their
    places are empty, so that gradients and optimiser states are made for u and v alone: no `optax.masked` is needed.
    ``merge(transform, params, state)`` gives the dense weights.

    Args:
      rank: of the corrections, 1 to the smaller side of every selected weight.
      key: a typed random key, for u.
      scale: alpha / rank of the paper.
      select: which weights are adapted; those with two axes or more, all but the last read as rows.
      train: other leaves that are trained as they are, such as ``("*/bias", "*/scale")``; by default none.
      stacked: leading axes of weights that stack layers, each with a correction of its own.

    Raises:
      ValueError: for settings out of range, weights that have no such rank, or a pattern that matches nothing.
      TypeError: for a key that is no typed key.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> transform = lora(1, jax.random.key(0))
      >>> params, state = transform.init({"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)})
      >>> sorted(paths.flatten(params)), transform.view(params, state)["kernel"][0].tolist()
      (['kernel/u', 'kernel/v'], [1.0, 1.0, 1.0])

    Source: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", section 4.1.
    """

    def begin(weights: dict[Path, Array], corrections: dict[Path, LowRank]) -> tuple[dict[Path, LowRank], dict[Path, Array]]:
        return corrections, weights

    show = partial(corrected, scale=scale)
    return adapter("lora", rank, key, scale, select, train, stacked, begin=begin, show=show)
