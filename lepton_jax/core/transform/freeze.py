"""A trained transform, kept as it stands."""

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform.base import State, Transform
from lepton_jax.core.transform.recipe import named
from lepton_jax.core.typing import PyTree


@checked
@named
def freeze(transform: Transform, state: State) -> Transform:
    """Keep a trained transform's view as it stands: `init` hands out `state`, and `update` does not change it.

    Pruned masters stay at zero: under momentum or weight decay `update` sets them there again.

    This is how one phase of training hands its invariants to the next: ``chain(freeze(pruned, state), fake_quant(bits=4))``.

    Args:
      transform: the transform that was trained.
      state: its state at the end of training.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import prune
      >>> pruned = prune(0.5)
      >>> params, state = pruned.init({"kernel": jnp.array([[1.0, 2.0]])})
      >>> frozen = freeze(pruned, state)
      >>> frozen.view(*frozen.init({"kernel": jnp.array([[9.0, 2.0]])}))["kernel"].tolist()
      [[0.0, 2.0]]
    """

    def init(params: PyTree) -> tuple[PyTree, State]:
        # A copy each time: a training step is free to donate its state, and this one must outlive it.
        return params, jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, state)

    return transform._replace(init=init, update=transform.frozen_update)
