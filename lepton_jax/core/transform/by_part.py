"""A transform for each part of the parameters."""

from collections.abc import Mapping
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform.base import State, Transform
from lepton_jax.core.transform.recipe import named
from lepton_jax.core.transform.wrapper import Moved, Seen, wrapper
from lepton_jax.core.typing import PyTree, Step


@checked
@named
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

    if not transforms:
        raise ValueError('by_part: give at least one transform, by the name of its part: {"student": prune(0.5)}.')

    def init(params: PyTree) -> tuple[PyTree, State]:
        if missing := [name for name in transforms if name not in params]:
            raise ValueError(f"by_part: there is no part {', '.join(missing)}. The parts are: {', '.join(params)}.")
        return _apart(params, {name: transform.init(params[name]) for name, transform in transforms.items()})

    def see(part: Seen, params: PyTree, state: State) -> PyTree:
        return {**params, **{name: getattr(t, part)(params[name], state[name]) for name, t in transforms.items()}}

    def move(part: Moved, params: PyTree, state: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        both = {n: getattr(t, part)(params[n], state[n], grads[n], step) for n, t in transforms.items()}
        return _apart(params, both)

    return wrapper(init, see, move)


def _apart(params: PyTree, both: dict[str, tuple[PyTree, Any]]) -> tuple[PyTree, dict[str, Any]]:
    return {**params, **{name: new for name, (new, _) in both.items()}}, {name: state for name, (_, state) in both.items()}
