"""What a criterion is."""

from typing import Any

from lepton_jax.typing import Array


class Criterion:
    """Scores one leaf's weights; the higher, the more a weight is worth keeping.

    A criterion that needs gradients gathers them in a state of its own, one a leaf. Subclasses are frozen dataclasses.

    Example:
      >>> import jax.numpy as jnp
      >>> class Square(Criterion):
      ...     def scores(self, weight, state):
      ...         return weight**2
      >>> Square().scores(jnp.array([-2.0]), ()).tolist()
      [4.0]
    """

    def init(self, weight: Array) -> Any:
        """Return the leaf's state before the first step."""
        del weight
        return ()

    def accumulate(self, state: Any, weight: Array, grad: Array) -> Any:
        """Return the state after one more step's gradient."""
        del weight, grad
        return state

    def scores(self, weight: Array, state: Any) -> Array:
        """Return scores of the weight's shape."""
        raise TypeError(f"{type(self).__name__} defines no scores")
