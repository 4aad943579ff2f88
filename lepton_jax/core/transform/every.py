"""A transform that is updated now and then."""

import jax
import jax.numpy as jnp

from lepton_jax.core.errors import check_whole
from lepton_jax.core.transform.base import State, Transform
from lepton_jax.core.transform.recipe import named
from lepton_jax.core.transform.wrapper import Moved, Seen, wrapper
from lepton_jax.core.typing import PyTree, Step


@named
def every(transform: Transform, steps: int) -> Transform:
    """Update a transform at every so many steps; in between, do what it does once it is frozen.

    Args:
      transform: any.
      steps: from one update to the next.

    Example:
      >>> from lepton_jax import prune
      >>> transform = every(prune(0.5), 10)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, 2.0]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.0, 2.0]]
    """
    check_whole("every: steps", steps, 1)

    def see(part: Seen, params: PyTree, state: State) -> PyTree:
        return getattr(transform, part)(params, state)

    def move(part: Moved, params: PyTree, state: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        def held() -> tuple[PyTree, State]:
            return transform.frozen_update(params, state, grads, step)

        if part == "frozen_update":
            return held()
        due = jnp.asarray(step) % steps == 0
        return jax.lax.cond(due, lambda: transform.update(params, state, grads, step), held)

    return wrapper(transform.init, see, move)
