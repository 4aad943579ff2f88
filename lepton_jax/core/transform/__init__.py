"""Transform: a view of the parameters, in the manner of optax.

A transform is a tuple of pure functions::

    params, tstate = transform.init(params)                          # once; may re-parametrise leaves
    loss(params) = loss_fn(transform.view(params, tstate), batch)    # every step, inside jit, differentiable
    params, tstate = transform.update(params, tstate, grads, step)   # every step, after the optimiser's update

Masters stay float32, so that any optimiser, checkpoint and sharding works unchanged. `wrapper` makes transforms of others;
`chain`, `freeze` and `by_part` are such.
"""

from lepton_jax.core.transform.base import State as State
from lepton_jax.core.transform.base import Transform, check_state, hold, identity, pack
from lepton_jax.core.transform.by_part import by_part
from lepton_jax.core.transform.chain import chain
from lepton_jax.core.transform.freeze import freeze
from lepton_jax.core.transform.recipe import named
from lepton_jax.core.transform.wrapper import wrapper

__all__ = ["Transform", "by_part", "chain", "check_state", "freeze", "hold", "identity", "named", "pack", "wrapper"]
