"""What a criterion is."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.typing import Array, Path, PyTree


def wide(values: Array) -> Array:
    """Return values in float32, or wider if they are: what scores are computed in.

    Example:
      >>> wide(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def check_decay(name: str, decay: float) -> None:
    """Raise unless ``0 <= decay <= 1``.

    Example:
      >>> check_decay("Fisher", 2)
      Traceback (most recent call last):
      ...
      ValueError: Fisher: decay must be in [0, 1], the weight of what was gathered before; got 2. For a plain sum, write 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(
            f"{name}: decay must be in [0, 1], the weight of what was gathered before; got {decay}. For a plain sum, write 1."
        )


class Criterion:
    """Scores weights; the higher, the more a weight is worth keeping.

    Scores are float32 (or wider, if the weights are) and finite for finite weights, zeros and constants included.

    Most criteria look at one leaf at a time: they define `scores`, and, where they gather something, `init` and `accumulate`.
    One that looks beyond the leaf (its path, the other parameters, a loss) defines `init_all` or `score_all` instead.
    Subclasses are frozen dataclasses.

    Example:
      >>> import jax.numpy as jnp
      >>> class Square(Criterion):
      ...     def scores(self, weight, state):
      ...         return weight**2
      >>> Square().score_all({"a": jnp.array([-2.0])}, {"a": ()}, {})["a"].tolist()
      [4.0]
    """

    def init(self, weight: Array) -> Any:
        """Return the leaf's state before the first step."""
        del weight
        return ()

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        """Return the leaf's state after one more step's gradient."""
        del weight, grad
        return state

    def scores(self, weight: Array, state: Any) -> Array:
        """Return scores of the weight's shape."""
        raise TypeError(f"{type(self).__name__} defines no scores")

    def init_all(self, weights: Mapping[Path, Array], params: PyTree) -> dict[Path, Any]:
        """Return the state of every selected leaf before the first step.

        Args:
          weights: the selected leaves by path.
          params: the whole tree that they are from.
        """
        del params
        return {path: self.init(weight) for path, weight in weights.items()}

    def score_all(self, weights: Mapping[Path, Array], states: Mapping[Path, Any], params: PyTree) -> dict[Path, Array]:
        """Return the scores of every selected leaf; arguments as for `init_all`."""
        del params
        return {path: self.scores(weight, states[path]) for path, weight in weights.items()}

    def apart(self, weight: Array, scores: Array) -> Array:
        """Return the scores of one of the weights that a leaf stacks (layers of a scan, experts).

        A criterion that compares a score with the others of its leaf compares it with those of the same weight here.

        Args:
          weight: one of them.
          scores: its part of the leaf's scores.
        """
        del weight
        return scores


class Gathered(Criterion):
    """Base of criteria whose scores are their state: made at the start by `init_all`, or gathered step by step.

    Example:
      >>> import jax.numpy as jnp
      >>> class Slopes(Gathered):
      ...     def init(self, weight):
      ...         return 0 * weight
      ...
      ...     def accumulate(self, state, weight, grad):
      ...         return state + grad
      >>> w = jnp.ones(2)
      >>> Slopes().scores(w, Slopes().accumulate(Slopes().init(w), w, 3 * w)).tolist()
      [3.0, 3.0]
    """

    def scores(self, weight: Array, state: Any) -> Array:
        del weight
        return state
