"""Back to dense weights."""

from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import unpack
from lepton_jax.core.transform import State, Transform
from lepton_jax.core.transform.base import given_its_state
from lepton_jax.core.typing import PyTree


@checked
def merge(transform: Transform, params: PyTree, state: State) -> PyTree:
    """Return the dense parameters that a trained model has, in the shapes it had before: bit for bit what the view shows.

    For factors (`low_rank`), adapters (`lora`, `qlora`, `dora`), and any other transform or chain. What comes out needs no
    transform any more, and costs at run time what the dense model costs.

    Args:
      transform: under which the model was trained.
      params: the trained masters.
      state: the transform's state.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.lora import lora
      >>> transform = lora(1, jax.random.key(0))
      >>> params, state = transform.init({"kernel": jnp.eye(2)})
      >>> merge(transform, params, state)
      {'kernel': Array([[1., 0.],
             [0., 1.]], dtype=float32)}
    """
    with given_its_state("merge"):
        return unpack(transform.view(params, state))
