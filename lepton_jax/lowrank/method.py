"""What a factorization is: the interface that all methods and all choices of rank share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.packed import Packed
from lepton_jax.core.typing import Array, Path, Select
from lepton_jax.core.weight_axes import WeightAxes, axes_of

Rank = int | tuple[int, ...]
"""The inner size of a factorization, or its inner sizes."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all factorizations.

    Args:
      stacked: how many leading axes of a leaf are a stack of weights (the layers of a scan), each factorized by itself.

    Example:
      >>> from lepton_jax.lowrank import Svd
      >>> isinstance(Svd(), Method), Svd().max_rank((6, 4)), Svd().parameters((6, 4), rank=2)
      (True, 4, 20)
    """

    stacked: int = 0

    axes: ClassVar[range] = range(0)
    """How many axes a weight may have."""
    takes: ClassVar[str] = "the method does not say what it can factorize"
    """The same in words, for errors."""

    def __post_init__(self) -> None:
        check_whole(f"{type(self).__name__}: stacked", self.stacked, 0)

    def at(self, path: Path) -> Method:
        """Return the method for the leaf at a path; another one where it depends on what is known of that leaf."""
        del path
        return self

    def placed(self, axes: WeightAxes) -> Method:
        """Return the method for a leaf whose axes are known: what is stacked is factorized one by one."""
        if axes.leading is None:
            return Refused(reason=f"has stacked axes {axes.stacked} that are not the first")
        return dataclasses.replace(self, stacked=axes.leading)

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Say why a leaf of this shape cannot be factorized in this way; None if it can."""
        axes = len(self.layer(shape))
        return None if axes in self.axes else f"has {axes} axes; {self.takes}"

    def max_rank(self, shape: tuple[int, ...]) -> Rank:
        """Return the rank, or ranks, at which any leaf of this shape is reproduced exactly."""
        raise TypeError(f"{type(self).__name__} does not say what its highest rank is")

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        """Return how many numbers the factors have in all, those of every stacked weight counted."""
        raise TypeError(f"{type(self).__name__} does not say how large its factors are")

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        """Return one matrix (*stack, m, n) a rank: the one of which that rank keeps so many singular values.

        What is left out of a singular value decomposition of it is the squared error that the method makes, in its own norm.
        There is none for a method whose error no singular values tell.
        """
        return ()

    def factorize(self, weight: Array, rank: Rank) -> Packed:
        """Return a factored leaf of the weight's shape and dtype."""
        ranks, single = self.inner(tuple(weight.shape), rank), dataclasses.replace(self, stacked=0)

        def one(layer: Array) -> Packed:
            return jax.tree.map(lambda part: part.astype(weight.dtype), single.decompose(working(layer), ranks))

        return each_layer(one, weight, self.stacked)

    def decompose(self, layer: Array, ranks: tuple[int, ...]) -> Packed:
        """Return the factored leaf of a single weight; `factorize` maps it over what is stacked."""
        raise TypeError(f"{type(self).__name__} does not say how it factorizes")

    def inner(self, shape: tuple[int, ...], rank: Rank) -> tuple[int, ...]:
        """Return the sizes between the factors, lowered to where they can be reached."""
        return as_ranks(self, rank, len(as_tuple(self.max_rank(shape))))

    def layer(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one of the stacked weights."""
        return tuple(shape[self.stacked :])

    def layers(self, shape: tuple[int, ...]) -> int:
        """How many stacked weights there are."""
        return math.prod(shape[: self.stacked])


@checked
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ByPath(Method):
    """A method for each leaf, chosen by its path; a leaf that has none is refused.

    Args:
      methods: by path.
      missing: what a leaf without one lacks, for the message.

    Example:
      >>> from lepton_jax.lowrank import Svd
      >>> method = ByPath(methods={"a": Svd()}, missing="method")
      >>> method.at("a"), method.at("b").refusal((2, 2))
      (Svd(stacked=0, rows=None), 'has no method')
    """

    methods: Mapping[Path, Method]
    missing: str

    def at(self, path: Path) -> Method:
        return self.methods.get(path) or Refused(reason=f"has no {self.missing}")

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        return f"is not named: {type(self).__name__} has a method for each path, at(path)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused(Method):
    """What factorizes no leaf.

    Args:
      reason: why, as it goes on after the leaf's shape.

    Example:
      >>> Refused(reason="is too small").refusal((1, 1))
      'is too small'
    """

    reason: str

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        return self.reason


def placed(method: Method, select: Select, weights: Mapping[Path, Any]) -> Method:
    """Return the method for weights whose axes the selector knows, leaf by leaf; see `lepton_jax.graph.weights`.

    Example:
      >>> from lepton_jax.lowrank import Svd
      >>> placed(Svd(), "*", {"w": jnp.ones((3, 2))})
      Svd(stacked=0, rows=None)
    """
    known = {path: axes_of(select, path, weight.shape) for path, weight in weights.items()}
    if not any(known.values()):
        return method
    each = {path: method.at(path) if axes is None else method.at(path).placed(axes) for path, axes in known.items()}
    return ByPath(methods=each, missing="weight of the function")


class RankRule(Protocol):
    """What chooses a rank for every leaf."""

    def ranks(self, weights: Mapping[Path, Array], method: Method) -> Mapping[Path, Rank]:
        """Return a rank by path; leaves that are left out stay dense."""
        ...


def each_layer(function: Callable[[Array], Any], weight: Array, stacked: int) -> Any:
    """Map a function of one weight over a stack of them; a leaf that it returns gets the whole stack's shape.

    Example:
      >>> each_layer(lambda w: w.sum(), jnp.ones((2, 3, 4)), 1).tolist()
      [12.0, 12.0]
    """
    for _ in range(stacked):
        function = jax.vmap(function)
    out = function(weight)
    return dataclasses.replace(out, shape=weight.shape) if isinstance(out, Packed) else out  # type: ignore[type-var]


def working(weight: Array) -> Array:
    """Return a weight in the precision in which it is decomposed: float32 at least."""
    return weight.astype(jnp.promote_types(weight.dtype, jnp.float32))


def as_ranks(method: Method, rank: Rank, count: int) -> tuple[int, ...]:
    """Return as many ranks as a method has; a single number stands for all of them.

    Example:
      >>> as_ranks(Method(), 3, 2)
      (3, 3)

    Raises:
      ValueError: for another number of ranks.
    """
    ranks = (rank,) * count if isinstance(rank, int) else tuple(rank)
    if len(ranks) != count:
        raise ValueError(f"{type(method).__name__}: takes {count} ranks, or one for all of them; got {rank}.")
    return ranks


def as_tuple(rank: Rank) -> tuple[int, ...]:
    """Return a rank as the tuple of all inner sizes."""
    return rank if isinstance(rank, tuple) else (rank,)
