"""A kernel as a sum of outer products, by alternating least squares."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.leaves.cp import CP
from lepton_jax.leaves.factors import SPACE
from lepton_jax.lowrank.method import Method, Rank

_LETTERS = f"{SPACE}cn"


class _Fit(NamedTuple):
    """A step of the alternation and the best so far."""

    factors: tuple[Array, ...]
    best: tuple[Array, ...]
    error: Array


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class CpAls(Method):
    """A kernel (*space, in, out) as ``sum_r f0[x, r] f1[y, r] f2[c, r] f3[n, r]``.

    Begins with the r largest of the outer products in the singular value decompositions of the kernel's (in, out) slices, its
    spatial axes turned to their singular vectors, and then solves for one factor after the other by least squares. The best
    step is kept: the error is never above that of the beginning, which is exact at the highest rank. No better rank than that
    is known of tensors in general, and finding the best fit of a lower one is hard: this finds a local one.

    Args:
      iterations: sweeps over all factors.
      damping: added to the diagonals of the normal equations, times their mean: keeps outer products that nearly cancel small.

    Example:
      >>> leaf = CpAls().factorize(jnp.ones((3, 3, 4, 5)), 1)
      >>> [factor.shape for factor in leaf.factors], bool(jnp.allclose(leaf.unpack(), 1, atol=1e-4))
      ([(3, 1), (3, 1), (4, 1), (5, 1)], True)

    Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition"; alternating
    least squares: Kolda, Bader 2009, "Tensor decompositions and applications", figure 3.3. The beginning is ours.
    """

    iterations: int = 50
    damping: float = 1e-6

    axes = range(3, 6)
    takes = "a kernel (*space, in, out) has 3 to 5"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("CpAls: iterations", self.iterations, 0)
        if not self.damping >= 0:
            raise ValueError(f"CpAls: damping must be 0 or more; got {self.damping}.")

    def max_rank(self, shape: tuple[int, ...]) -> int:
        *space, into, out = self.layer(shape)
        return math.prod(space) * min(into, out)

    def parameters(self, shape: tuple[int, ...], rank: Rank) -> int:
        return self.layers(shape) * sum(self.layer(shape)) * self.inner(shape, rank)[0]

    def decompose(self, layer: Array, ranks: tuple[int, ...]) -> CP:
        return CP(_fit(layer, self.damping, ranks[0], self.iterations), layer.shape)


@partial(jax.jit, static_argnames=("rank", "iterations"))
def _fit(kernel: Array, damping: float, rank: int, iterations: int) -> tuple[Array, ...]:
    begin = _largest_products(kernel, rank)
    first = _Fit(begin, begin, _error(kernel, begin))
    return _balanced(jax.lax.fori_loop(0, iterations, lambda _, fit: _sweep(kernel, fit, damping), first).best)


def _largest_products(kernel: Array, rank: int) -> tuple[Array, ...]:
    """The largest of a set of orthogonal outer products that sum to the kernel."""
    *space, into, out = kernel.shape
    bases = []
    for axis, size in enumerate(space):
        unfolded = jnp.moveaxis(kernel, axis, 0).reshape(size, -1)
        bases.append(jnp.linalg.svd(unfolded @ unfolded.T)[0])
        kernel = jnp.moveaxis(jnp.tensordot(bases[-1].T, kernel, (1, axis), precision="highest"), 0, axis)
    left, values, right = jnp.linalg.svd(kernel.reshape(-1, into, out), full_matrices=False)
    _, chosen = jax.lax.top_k(values.reshape(-1), rank)
    piece, place = jnp.divmod(chosen, values.shape[-1])
    positions = jnp.unravel_index(piece, space)
    scaled = jnp.swapaxes(left, 1, 2)[piece, place] * values[piece, place][:, None]
    return (*(basis[:, at] for basis, at in zip(bases, positions)), scaled.T, right[piece, place].T)


def _sweep(kernel: Array, fit: _Fit, damping: float | Array) -> _Fit:
    """Solve for every factor once, the others fixed."""
    factors = list(_balanced(fit.factors))
    letters = _letters(kernel)
    for axis in range(kernel.ndim):
        others = [factor for at, factor in enumerate(factors) if at != axis]
        names = ",".join(f"{letter}r" for at, letter in enumerate(letters) if at != axis)
        right = jnp.einsum(f"{letters},{names}->{letters[axis]}r", kernel, *others, precision="highest")
        gram = jnp.ones((right.shape[1],) * 2, right.dtype)
        for factor in others:
            gram = gram * jnp.matmul(factor.T, factor, precision="highest")
        ridge = (damping * jnp.trace(gram) / gram.shape[0] + jnp.finfo(gram.dtype).tiny) * jnp.eye(
            gram.shape[0], dtype=gram.dtype
        )
        factors[axis] = jnp.linalg.solve(gram + ridge, right.T).T
    error = _error(kernel, tuple(factors))
    better = error < fit.error  # never for what is not finite
    best = tuple(jnp.where(better, new, old) for new, old in zip(factors, fit.best))
    return _Fit(tuple(factors), best, jnp.where(better, error, fit.error))


def _letters(kernel: Array) -> str:
    return f"{_LETTERS[: kernel.ndim - 2]}cn"


def _error(kernel: Array, factors: tuple[Array, ...]) -> Array:
    names = ",".join(f"{letter}r" for letter in _letters(kernel))
    return jnp.sum((jnp.einsum(f"{names}->{_letters(kernel)}", *factors, precision="highest") - kernel) ** 2)


def _balanced(factors: tuple[Array, ...]) -> tuple[Array, ...]:
    """The same products, each with the same norm in every factor."""
    norms = [jnp.linalg.norm(factor, axis=0) for factor in factors]
    share = jnp.exp(sum(jnp.log(jnp.maximum(norm, 1e-30)) for norm in norms) / len(norms))
    return tuple(factor * (share / jnp.maximum(norm, 1e-30))[None, :] for factor, norm in zip(factors, norms))
