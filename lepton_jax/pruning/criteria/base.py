"""What a criterion is."""

from collections.abc import Mapping
from typing import Any

from lepton_jax.typing import Array, Path, PyTree


class Criterion:
    """Scores weights; the higher, the more a weight is worth keeping.

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
