"""Transforms made of other transforms: one way to carry every part to those inside."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform.base import Init, State, Transform
from lepton_jax.core.typing import PyTree, Step

Seen = Literal["view", "pack", "view_leaves"]
"""Parts that show parameters: ``part(params, state) -> params``."""
Moved = Literal["update", "frozen_update"]
"""Parts that move them: ``part(params, state, grads, step) -> (params, state)``."""


@checked
def wrapper(
    init: Init,
    see: Callable[[Seen, PyTree, State], PyTree],
    move: Callable[[Moved, PyTree, State, PyTree, Step], tuple[PyTree, State]],
) -> Transform:
    """Return a transform made of others, which says only how parameters and states reach them.

    Every part of `Transform` goes through `see` or `move`, so that no wrapper can forget one. A part that a wrapper changes is
    told by its name, and everything else is handed on.

    Args:
      init: as a transform's.
      see: ``see(part, params, state) -> tree``, for the parts that show: ``getattr(inner, part)(params, state)``.
      move: ``move(part, params, state, grads, step) -> (params, state)``, for those that move.

    Example:
      >>> from lepton_jax import fake_quant
      >>> inner = fake_quant(2)
      >>> def see(part, params, state):
      ...     return {"net": getattr(inner, part)(params["net"], state)}
      >>> def move(part, params, state, grads, step):
      ...     params, state = getattr(inner, part)(params["net"], state, grads["net"], step)
      ...     return {"net": params}, state
      >>> nested = wrapper(lambda params: (params, inner.init(params["net"])[1]), see, move)
      >>> import jax.numpy as jnp
      >>> params, state = nested.init({"net": {"w": jnp.array([[1.5], [0.25]])}})
      >>> nested.view(params, state)["net"]["w"].tolist(), type(nested.pack(params, state)["net"]["w"]).__name__
      ([[1.0], [0.0]], 'QArray')
    """
    shown: dict[str, Any] = {part: partial(see, part) for part in ("view", "pack", "view_leaves")}
    moved: dict[str, Any] = {part: partial(move, part) for part in ("update", "frozen_update")}
    return Transform(init, **shown, **moved)
