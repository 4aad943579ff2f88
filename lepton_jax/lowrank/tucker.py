"""A convolution between fewer channels: the Tucker decomposition along inputs and outputs."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.leaves.tucker import Tucker
from lepton_jax.lowrank.method import Method, Rank, working


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tucker2(Method):
    """A kernel (*space, in, out) as 1 x 1 to a channels, a smaller kernel to b channels, and 1 x 1 to the outputs.

    ``W = core x_in first x_out last`` with orthonormal `first` and `last`: the leading singular vectors of the kernel unfolded
    along its inputs and outputs (higher-order SVD), then each in turn those of the kernel projected on the other (higher-order
    orthogonal iteration), which never raises the error.

    The ranks are (a, b). A rank that the other does not let be reached (``a > b * positions``) is lowered to where it can.

    Args:
      iterations: of the alternation; 0 leaves the higher-order SVD.

    Example:
      >>> leaf = Tucker2().factorize(jnp.ones((3, 3, 4, 5)), (2, 1))
      >>> leaf.first.shape, leaf.core.shape, leaf.last.shape, bool(jnp.allclose(leaf.unpack(), 1, atol=1e-5))
      ((4, 2), (3, 3, 2, 1), (1, 5), True)

    Source: Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile applications",
    section 3.1; De Lathauwer, De Moor, Vandewalle 2000, "On the best rank-1 and rank-(R1, ..., RN) approximation".
    """

    iterations: int = 5

    axes = range(3, 6)
    takes = "a kernel (*space, in, out) has 3 to 5"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("Tucker2: iterations", self.iterations, 0)

    def max_rank(self, shape: tuple[int, ...]) -> tuple[int, int]:
        *space, into, out = self.layer(shape)
        positions = math.prod(space)
        return min(into, positions * out), min(out, positions * into)

    def inner(self, shape: tuple[int, ...], rank: Rank) -> tuple[int, int]:
        positions = math.prod(self.layer(shape)[:-2])
        a, b = super().inner(shape, rank)
        return min(a, positions * b), min(b, positions * a)

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        *space, into, out = self.layer(shape)
        a, b = self.inner(shape, rank)
        return self.layers(shape) * (into * a + math.prod(space) * a * b + b * out)

    def matrices(self, weight: Array) -> tuple[Array, ...]:
        return tuple(_unfolded(working(weight), axis, self.stacked) for axis in (-2, -1))

    def decompose(self, layer: Array, ranks: tuple[int, ...]) -> Tucker:
        first, core, last = _alternated(layer, *ranks, self.iterations)
        return Tucker(first, core, last, layer.shape)


@partial(jax.jit, static_argnames=("a", "b", "iterations"))
def _alternated(kernel: Array, a: int, b: int, iterations: int) -> tuple[Array, Array, Array]:
    first, last = _leading(kernel, -2, a), _leading(kernel, -1, b)
    for _ in range(iterations):
        first = _leading(_projected(kernel, last, "cn,nb->cb"), -2, a)
        last = _leading(_projected(kernel, first, "cn,ca->an"), -1, b)
    core = _projected(_projected(kernel, first, "cn,ca->an"), last, "an,nb->ab")
    return first, core, last.T


def _unfolded(kernel: Array, axis: int, stacked: int = 0) -> Array:
    """One axis as rows, all others as columns."""
    moved = jnp.moveaxis(kernel, axis, stacked)
    return moved.reshape(*moved.shape[: stacked + 1], -1)


def _leading(kernel: Array, axis: int, rank: int) -> Array:
    """The leading left singular vectors (size, rank) of a kernel unfolded along an axis."""
    return jnp.linalg.svd(_unfolded(kernel, axis), full_matrices=False)[0][:, :rank]


def _projected(kernel: Array, basis: Array, letters: str) -> Array:
    given, other = letters.split(",")
    return jnp.einsum(f"...{given},{other.replace('->', '->...')}", kernel, basis, precision="highest")
