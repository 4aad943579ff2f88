"""What every structure offers: which weights are removed together.

A structure says what a *unit* is: `reduce` gives one score a unit, `expand` spreads the units' mask over the weights.
A *local* structure (N:M) chooses within small groups instead: it defines `mask`, and takes no part in a common threshold.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path
from lepton_jax.core.weight_axes import WeightAxes
from lepton_jax.pruning.units import block_means, spread

Shape = tuple[int, ...]


class Structure:
    """Base of all structures. Subclasses are frozen dataclasses.

    Attributes:
      local: True for a structure that chooses by itself, by `mask`; False for one that defines `reduce` and `expand`.

    Example:
      >>> import jax.numpy as jnp
      >>> class Rows(Structure):
      ...     def reduce(self, scores):
      ...         return scores.sum(axis=1)
      ...
      ...     def expand(self, mask, shape):
      ...         return jnp.broadcast_to(mask[:, None], shape)
      >>> Rows().expand(jnp.array([True, False]), (2, 2)).tolist()
      [[True, True], [False, False]]
    """

    local: ClassVar[bool] = False

    def at(self, axes: WeightAxes | None) -> "Structure":
        """Return the structure for a leaf whose axes are known, see `lepton_jax.graph.weights`; None: they are not."""
        del axes
        return self

    def check(self, shapes: Mapping[Path, Shape], sparsity: float | Array) -> None:
        """Raise where the structure does not fit; called once, before any mask is made.

        Args:
          shapes: of the selected leaves, by path.
          sparsity: the fraction removed in the end, [0, 1); not looked at if traced.

        Raises:
          ValueError: naming every path whose shape, or the sparsity, does not suit the structure.
        """
        del shapes, sparsity

    def mask(self, scores: Array, sparsity: Array) -> Array:
        """Return a local structure's mask of the scores' shape.

        Args:
          scores: of one leaf; -inf where a weight must not return.
          sparsity: float32 scalar, the fraction to be removed now; traced.
        """
        raise TypeError(f"{type(self).__name__} does not choose by itself")

    def reduce(self, scores: Array) -> Array:
        """Return one score a unit."""
        raise TypeError(f"{type(self).__name__} defines no units")

    def expand(self, mask: Array, shape: Shape) -> Array:
        """Return the units' mask spread over an array of `shape`."""
        raise TypeError(f"{type(self).__name__} defines no units")


class Blockwise(Structure):
    """Base of structures whose units are equal blocks of a leaf; a unit's score is the mean of its weights' scores.

    Example:
      >>> import jax.numpy as jnp
      >>> class Pairs(Blockwise):
      ...     def block(self, shape):
      ...         return (2,)
      >>> Pairs().reduce(jnp.array([1.0, 3.0, 7.0])).tolist(), Pairs().expand(jnp.array([True, False]), (3,)).tolist()
      ([2.0, 7.0], [True, True, False])
    """

    def block(self, shape: Shape) -> Shape:
        """Return the sizes of a block, one for each axis of a leaf of this shape.

        Raises:
          ValueError: if such a leaf has no blocks; says why.
        """
        raise TypeError(f"{type(self).__name__} defines no blocks")

    def check(self, shapes: Mapping[Path, Shape], sparsity: float | Array) -> None:
        with collect(repr(self).removesuffix("()")) as problems:
            problems.extend(complaints(shapes, self.block))

    def reduce(self, scores: Array) -> Array:
        return block_means(scores, self.block(scores.shape))

    def expand(self, mask: Array, shape: Shape) -> Array:
        return spread(mask, shape, self.block(shape))


def complaints(shapes: Mapping[Path, Shape], fits: Callable[[Shape], object]) -> Iterator[str]:
    """Call `fits` on every shape and return what it complains of, each with its path.

    Example:
      >>> def square(shape):
      ...     if shape[0] != shape[1]:
      ...         raise ValueError(f"is not square: {shape}")
      >>> list(complaints({"a": (2, 2), "b": (2, 3)}, square))
      ['b: is not square: (2, 3)']
    """
    for path, shape in shapes.items():
        try:
            fits(shape)
        except ValueError as error:
            yield f"{path}: {error}"
