"""Operations that LiteRT's converter has no form of, written by others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from lepton_jax.deploy.inlined import Inlining
from lepton_jax.graph.trace import Equation, trace


class Rewriting(Inlining):
    """Evaluates a graph in one piece, by operations that LiteRT has."""

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if eqn.primitive == "rev":
            return [_reversed(values[0], eqn.params["dimensions"])]
        return super().handle(eqn, values)


def _reversed(x: Any, axes: Sequence[int]) -> Any:
    for axis in axes:
        x = jax.lax.rev(x, (axis,))
    return x


def rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of inputs alone by operations that LiteRT has.

    Example:
      >>> import numpy as np
      >>> rewritten(lambda x: jax.numpy.flip(x))(np.array([[1, 2], [3, 4]])).tolist()
      [[4, 3], [2, 1]]
    """
    return lambda *inputs: Rewriting(trace(lambda _, *given: function(*given), (), *inputs))((), *inputs)
