"""Kernels and matrices as chains of small tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.leaves.networks import TensorTrain, TensorTrainMatrix
from lepton_jax.lowrank.method import Method, Rank, as_ranks, each_layer, working


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSvd(Method):
    """A kernel (*space, in, out) as a chain over inputs, each spatial axis, and outputs.

    Convolutions 1 x 1, k x 1, 1 x k and 1 x 1 in turn. The chain's links are cut one after the other by singular value
    decompositions: the squared error is at most the sum of what each of `matrices` leaves out at its rank.

    There is a rank for each link. One that its neighbours do not let be reached is lowered to where it can.

    Example:
      >>> leaf = TrainSvd().factorize(jnp.ones((3, 3, 4, 5)), (2, 2, 1))
      >>> [core.shape for core in leaf.cores], bool(jnp.allclose(leaf.unpack(), 1, atol=1e-5))
      ([(4, 2), (2, 3, 2), (2, 3, 1), (1, 5)], True)

    Source: Oseledets 2011, "Tensor-train decomposition", algorithm 1, theorem 2.2.
    """

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        axes = len(self.layer(shape))
        return None if 3 <= axes <= 5 else f"has {axes} axes; a kernel (*space, in, out) has 3 to 5"

    def modes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes along the chain: inputs, space, outputs."""
        *space, into, out = self.layer(shape)
        return (into, *space, out)

    def max_rank(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return highest_links(self.modes(shape))

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        return self.layers(shape) * chain_size(self.modes(shape), self._links(shape, rank))

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        return unfoldings(jnp.moveaxis(working(weight), -2, self.stacked), self.stacked)

    def factorize(self, weight: Array, rank: Rank) -> TensorTrain:
        links = self._links(weight.shape, rank)

        def cores(kernel: Array) -> TensorTrain:
            found = chain(jnp.moveaxis(working(kernel), -2, 0), links)
            return TensorTrain(tuple(core.astype(weight.dtype) for core in found), kernel.shape)

        return each_layer(cores, weight, self.stacked)

    def _links(self, shape: tuple[int, ...], rank: Rank) -> tuple[int, ...]:
        modes = self.modes(shape)
        return reachable(modes, as_ranks(self, rank, len(modes) - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMatrixSvd(Method):
    """A matrix as a chain of cores, its rows and columns written as numbers of several digits.

    Args:
      cores: how many; each side is split into so many factors, as alike as they can be (1024 rows into 16, 8, 8).

    Example:
      >>> leaf = TrainMatrixSvd(cores=2).factorize(jnp.ones((6, 4)), 1)
      >>> [core.shape for core in leaf.cores], bool(jnp.allclose(leaf.unpack(), 1, atol=1e-5))
      ([(3, 2, 1), (1, 2, 2)], True)

    Source: Novikov et al. 2015, "Tensorizing neural networks", section 4.
    """

    cores: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("TrainMatrixSvd: cores", self.cores, 2, 13)

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        axes = len(self.layer(shape))
        return None if axes == 2 else f"has {axes} axes; a matrix has 2"

    def modes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(Rows, columns) of every core."""
        rows, columns = (digits(size, self.cores) for size in self.layer(shape))
        return tuple(zip(rows, columns))

    def max_rank(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return highest_links([math.prod(mode) for mode in self.modes(shape)])

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        return self.layers(shape) * chain_size([math.prod(mode) for mode in self.modes(shape)], self._links(shape, rank))

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        return unfoldings(self._digits(working(weight)), self.stacked)

    def factorize(self, weight: Array, rank: Rank) -> TensorTrainMatrix:
        links, modes = self._links(weight.shape, rank), self.modes(weight.shape)
        one = dataclasses.replace(self, stacked=0)

        def cores(matrix: Array) -> TensorTrainMatrix:
            first, *inner, last = chain(one._digits(working(matrix)), links)
            found = [first.reshape(*modes[0], -1)]
            found += [core.reshape(core.shape[0], *mode, core.shape[-1]) for core, mode in zip(inner, modes[1:])]
            found += [last.reshape(-1, *modes[-1])]
            return TensorTrainMatrix(tuple(core.astype(weight.dtype) for core in found), matrix.shape)

        return each_layer(cores, weight, self.stacked)

    def _digits(self, matrix: Array) -> Array:
        """The matrix with an axis for each pair of digits."""
        stack, modes = matrix.shape[: self.stacked], self.modes(matrix.shape)
        wide = matrix.reshape(*stack, *(i for i, _ in modes), *(j for _, j in modes))
        order = [self.stacked + side * self.cores + at for at in range(self.cores) for side in (0, 1)]
        return jnp.transpose(wide, (*range(self.stacked), *order)).reshape(*stack, *(i * j for i, j in modes))

    def _links(self, shape: tuple[int, ...], rank: Rank) -> tuple[int, ...]:
        return reachable([math.prod(mode) for mode in self.modes(shape)], as_ranks(self, rank, self.cores - 1))


@partial(jax.jit, static_argnames="links")
def chain(tensor: Array, links: tuple[int, ...]) -> list[Array]:
    """Return cores whose chain is near a tensor: (n0, r0), (r0, n1, r1), ..., (r, n).

    Example:
      >>> [core.shape for core in chain(jnp.ones((2, 3, 4)), (2, 1))]
      [(2, 2), (2, 3, 1), (1, 4)]
    """
    cores, rest, rank = [], tensor, 1
    for size, link in zip(tensor.shape, links):
        left, values, right = jnp.linalg.svd(rest.reshape(rank * size, -1), full_matrices=False)
        cores.append(left[:, :link].reshape(rank, size, link))
        rest, rank = values[:link, None] * right[:link], link
    cores.append(rest.reshape(rank, tensor.shape[-1]))
    return [cores[0].reshape(tensor.shape[0], -1), *cores[1:]]


def unfoldings(tensor: Array, stacked: int) -> tuple[Array, ...]:
    """Return the matrix at every link: the axes before it by those after it."""
    stack, modes = tensor.shape[:stacked], tensor.shape[stacked:]
    return tuple(tensor.reshape(*stack, math.prod(modes[:cut]), -1) for cut in range(1, len(modes)))


def highest_links(modes: Sequence[int]) -> tuple[int, ...]:
    """The ranks at which a chain is exact.

    Example:
      >>> highest_links((2, 3, 4))
      (2, 4)
    """
    return tuple(min(math.prod(modes[:cut]), math.prod(modes[cut:])) for cut in range(1, len(modes)))


def reachable(modes: Sequence[int], links: Sequence[int]) -> tuple[int, ...]:
    """Lower every link to what its neighbours let it have.

    Example:
      >>> reachable((2, 3, 4), (1, 4))
      (1, 3)
    """
    found = list(links)
    for at in range(len(found)):
        found[at] = min(found[at], modes[at] * (found[at - 1] if at else 1))
    for at in range(len(found) - 1, -1, -1):
        found[at] = min(found[at], modes[at + 1] * (found[at + 1] if at + 1 < len(found) else 1))
    return tuple(found)


def chain_size(modes: Sequence[int], links: Sequence[int]) -> int:
    """How many numbers the cores of a chain have.

    Example:
      >>> chain_size((2, 3, 4), (1, 3))
      23
    """
    ends = (1, *links, 1)
    return sum(left * size * right for left, size, right in zip(ends, modes, ends[1:]))


def digits(size: int, count: int) -> tuple[int, ...]:
    """Split a whole number into `count` factors as alike as the greedy choice makes them, the largest first.

    Example:
      >>> digits(1024, 3), digits(10, 3)
      ((16, 8, 8), (5, 2, 1))
    """
    primes, rest, divisor = [], size, 2
    while divisor * divisor <= rest:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    factors = [1] * count
    for prime in sorted([*primes, rest] if rest > 1 else primes, reverse=True):
        factors[factors.index(min(factors))] *= prime
    return tuple(sorted(factors, reverse=True))
