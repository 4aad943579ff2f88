"""States of several runs of one structure, stacked: every leaf has a leading axis, except the step, which all share.

The runs differ in their seeds, and in whatever their transforms keep in the state: initial weights, order of the data, masks,
sparsities. `fit` trains a stack when its batches come from a `StackedSource`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array, PyTree
from lepton_jax.training.state import TrainState


class Begin(Protocol):
    """What a run makes of its weights: `lepton_jax.training.create` with its optimiser and transform, as a rule."""

    def __call__(self, params: PyTree, model_state: PyTree, *, key: Array) -> TrainState: ...


def start(one: Callable[..., TrainState], *each: Any) -> TrainState:
    """Return the stacked states, at step 0, that a function makes of the slices of its arguments.

    Args:
      one: traced once for all runs.
      *each: trees whose leaves have a leading axis of as many as there are runs.

    Example:
      >>> import optax
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import create
      >>> one = lambda w, key: create({"w": w}, {}, optax.sgd(0.1), identity(), key)
      >>> state = start(one, jnp.arange(3.0), jax.random.split(jax.random.key(0), 3))
      >>> count(state), int(state.step), member(state, 2).params["w"].item()
      (3, 0, 2.0)
    """
    # Without a first axis of its own the step stays a number that all runs share, and a condition on it a condition.
    return jax.jit(jax.vmap(one))(*each)._replace(step=jnp.int32(0))


def restart(state: TrainState, begin: Begin) -> TrainState:
    """Begin anew, at step 0, from the weights that trained runs have."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.key, state.step)
    return start(lambda params, model_state, key: begin(params, model_state, key=key), state.params, state.model_state, keys)


def stack(states: Sequence[TrainState]) -> TrainState:
    """Join stacked states of the same step and structure into one.

    Raises:
      ValueError: if their structures differ, so that no common program can train them.
    """
    try:
        return _join(tuple(states), jnp.concatenate)
    except (ValueError, TypeError) as error:
        raise ValueError(f"these runs have states of different structure and must be trained apart: {error}") from error


def together(runs: Sequence[TrainState]) -> TrainState:
    """Return the stack of single runs of the same step; the inverse of `apart`."""
    return _join(tuple(runs), jnp.stack)


@functools.partial(jax.jit, static_argnums=1)  # compiled whole: leaf by leaf it would be dozens of small programs
def _join(states: tuple[TrainState, ...], join: Callable[[list[Array]], Array]) -> TrainState:
    def joined(*leaves: Array) -> Array:
        return jnp.copy(join(list(leaves)))  # what is joined is donated, and its parts may be needed again

    return TrainState(jnp.copy(states[0].step), *jax.tree.map(joined, *[state[1:] for state in states]))


@jax.jit
def member(state: TrainState, index: int) -> TrainState:
    """Return one run's state out of a stack, in buffers of its own."""
    return TrainState(jnp.copy(state.step), *jax.tree.map(lambda leaf: leaf[index], state[1:]))


def count(state: TrainState) -> int:
    """Return how many runs are stacked."""
    return state.key.shape[0]


def apart(state: TrainState) -> list[TrainState]:
    """Return every run's state out of a stack, in buffers of their own."""
    return [member(state, index) for index in range(count(state))]
