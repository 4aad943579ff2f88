"""Training states of several parts: a student and its adapters, or peers that learn from each other."""

from collections.abc import Mapping

from lepton_jax.core.transform import State, Transform, pack
from lepton_jax.core.typing import PyTree, Step
from lepton_jax.training.state import TrainState


def by_part(transforms: Mapping[str, Transform]) -> Transform:
    """Apply a transform to each named part of the parameters, and leave the other parts as they are.

    Parameters are ``{part: tree}``; the state is ``{part: that transform's state}``. So adapters are neither pruned nor
    quantized, and each transform sees its part's own paths.

    Args:
      transforms: by the names of parts.

    Raises:
      ValueError: when initialised, if a part is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import prune
      >>> transform = by_part({"student": prune(0.5)})
      >>> params = {"student": {"kernel": jnp.array([[1.0, 2.0]])}, "adapters": {"kernel": jnp.array([[1.0, 2.0]])}}
      >>> params, state = transform.init(params)
      >>> {name: leaf["kernel"].tolist() for name, leaf in transform.view(params, state).items()}
      {'student': [[0.0, 2.0]], 'adapters': [[1.0, 2.0]]}
    """

    def init(params: PyTree) -> tuple[PyTree, State]:
        if missing := [name for name in transforms if name not in params]:
            raise ValueError(f"by_part: there is no part {', '.join(missing)}. The parts are: {', '.join(params)}.")
        both = {name: transform.init(params[name]) for name, transform in transforms.items()}
        return {**params, **{n: p for n, (p, _) in both.items()}}, {n: s for n, (_, s) in both.items()}

    def view(params: PyTree, state: State) -> PyTree:
        return {**params, **{n: t.view(params[n], state[n]) for n, t in transforms.items()}}

    def view_leaves(params: PyTree, state: State) -> PyTree:
        return {**params, **{n: (t.view_leaves or t.view)(params[n], state[n]) for n, t in transforms.items()}}

    def update(params: PyTree, state: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        both = {n: t.update(params[n], state[n], grads[n], step) for n, t in transforms.items()}
        return {**params, **{n: p for n, (p, _) in both.items()}}, {n: s for n, (_, s) in both.items()}

    def pack_parts(params: PyTree, state: State) -> PyTree:
        return {**params, **{n: pack(t, params[n], state[n]) for n, t in transforms.items()}}

    return Transform(init, view, update, pack_parts, view_leaves)


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
