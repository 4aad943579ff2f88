"""Matrices as chains of small tensors."""

import dataclasses

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.leaves.tensor_train_matrix import TensorTrainMatrix
from lepton_jax.lowrank.tensor_train import Chain, chain


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMatrixSvd(Chain):
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

    axes = range(2, 3)
    takes = "a matrix has 2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("TrainMatrixSvd: cores", self.cores, 2, 13)

    def modes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(Rows, columns) of every core."""
        rows, columns = (digits(size, self.cores) for size in self.layer(shape))
        return tuple(zip(rows, columns))

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(rows * columns for rows, columns in self.modes(shape))

    def tensor(self, weight: Array) -> Array:
        """The matrix with an axis for each pair of digits."""
        stack, modes = weight.shape[: self.stacked], self.modes(weight.shape)
        wide = weight.reshape(*stack, *(i for i, _ in modes), *(j for _, j in modes))
        order = [self.stacked + side * self.cores + at for at in range(self.cores) for side in (0, 1)]
        return jnp.transpose(wide, (*range(self.stacked), *order)).reshape(*stack, *(i * j for i, j in modes))

    def decompose(self, layer: Array, ranks: tuple[int, ...]) -> TensorTrainMatrix:
        modes, ends = self.modes(layer.shape), (1, *ranks, 1)
        found = [
            core.reshape(left, *mode, right)
            for core, left, mode, right in zip(chain(self.tensor(layer), ranks), ends, modes, ends[1:])
        ]
        found[0], found[-1] = found[0][0], found[-1][..., 0]
        return TensorTrainMatrix(tuple(found), layer.shape)


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
