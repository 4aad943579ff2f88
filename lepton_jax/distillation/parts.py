"""Training states of several parts: a student and its adapters, or peers that learn from each other."""

from lepton_jax.core.arguments import checked
from lepton_jax.training.state import TrainState


@checked
def part(state: TrainState, name: str) -> TrainState:
    """Return one part of a training state, to evaluate, pack or save it by itself.

    Args:
      state: its parameters, model state and transform state are ``{part: ...}``; the optimiser's state stays whole.
      name: of the part.

    Raises:
      ValueError: if there is no such part.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from lepton_jax import identity
      >>> from lepton_jax.distillation import by_part
      >>> from lepton_jax.training import create
      >>> params = {"student": {"w": jnp.ones(1)}, "adapters": {}}
      >>> state = create(params, {"student": {}}, optax.sgd(0.1), by_part({"student": identity()}), jax.random.key(0))
      >>> part(state, "student").params
      {'w': Array([1.], dtype=float32)}
    """
    if name not in state.params:
        raise ValueError(f"part: there is no part {name!r}. The parts are: {', '.join(state.params)}.")
    own = {"model_state": state.model_state, "tstate": state.tstate}
    return state._replace(params=state.params[name], **{key: value.get(name, {}) for key, value in own.items()})
