"""Kernels as chains of small tensors."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.leaves.tensor_train import TensorTrain
from lepton_jax.lowrank.method import Method, Rank, working


class Chain(Method):
    """Base of the methods that cut a tensor into a chain of small ones, link by link."""

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes along the chain."""
        raise TypeError(f"{type(self).__name__} does not say what its chain runs along")

    def tensor(self, weight: Array) -> Array:
        """The weight with an axis for each place in the chain, behind those that are stacked."""
        raise TypeError(f"{type(self).__name__} does not say what its chain runs along")

    def max_rank(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return highest_links(self.sizes(shape))

    def inner(self, shape: tuple[int, ...], rank: Rank) -> tuple[int, ...]:
        return reachable(self.sizes(shape), super().inner(shape, rank))

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        return self.layers(shape) * chain_size(self.sizes(shape), self.inner(shape, rank))

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        return unfoldings(self.tensor(working(weight)), self.stacked)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSvd(Chain):
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

    axes = range(3, 6)
    takes = "a kernel (*space, in, out) has 3 to 5"

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes along the chain: inputs, space, outputs."""
        *space, into, out = self.layer(shape)
        return (into, *space, out)

    def tensor(self, weight: Array) -> Array:
        return jnp.moveaxis(weight, -2, self.stacked)

    def decompose(self, layer: Array, ranks: tuple[int, ...]) -> TensorTrain:
        return TensorTrain(tuple(chain(self.tensor(layer), ranks)), layer.shape)


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
