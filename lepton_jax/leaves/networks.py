"""Tensors as networks of smaller ones: the kin of `LowRank` for convolutions, and for matrices of many modes.

Each is a factored leaf: its parts are leaves of their own (``Conv_0/kernel/core``), which may be pruned, quantized or
factored in turn. A letter names each axis of each part; axes of one letter are summed over, or are axes of the dense tensor::

    W[h, w, c, n] = sum_{a, b} first[c, a] core[h, w, a, b] last[b, n]

The parts stand in the order in which an input meets them. All may have the same leading axes, of stacked weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_letters
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Packed, register_packed, unpack
from lepton_jax.core.typing import Array

SPACE = "xyz"
"""Letters of a kernel's spatial axes; its input and output channels are c and n."""


class Factors(Packed):
    """Base of the tensors made of smaller ones.

    Example:
      >>> Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)).labels
      ('xcr', 'yrn')
    """

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return jnp.result_type(*(part.dtype for part in self.parts))

    @property
    def parts(self) -> tuple[Any, ...]:
        """The smaller tensors, in the order in which an input meets them."""
        raise TypeError(f"{type(self).__name__} does not say what it is made of")

    @property
    def labels(self) -> tuple[str, ...]:
        """A letter for each axis of each part, stacked axes left out."""
        raise TypeError(f"{type(self).__name__} does not name the axes of its parts")

    @property
    def axes(self) -> tuple[str, ...]:
        """For each axis of the dense tensor, stacked axes left out, the letters it consists of, the slowest first."""
        raise TypeError(f"{type(self).__name__} does not say what its axes are")

    @property
    def stacked(self) -> int:
        """How many leading axes stack weights."""
        return len(self.parts[0].shape) - len(self.labels[0])

    def unpack(self) -> Array:
        return contract([unpack(part) for part in self.parts], self.labels, "".join(self.axes)).reshape(self.shape)


def contract(parts: Sequence[Array], labels: Sequence[str], letters: str) -> Array:
    """Sum the product of parts over all letters but those given, stacked axes in front.

    Example:
      >>> contract([jnp.ones((3, 2)), jnp.ones((2, 4))], ("ca", "an"), "cn").shape
      (3, 4)
    """
    names = ",".join(f"...{label}" for label in labels)
    return jnp.einsum(f"{names}->...{letters}", *parts, precision="highest")


def kernel_axes(ndim: int) -> tuple[str, ...]:
    """Letters of the axes (*space, in, out) of a convolution's kernel.

    Example:
      >>> kernel_axes(4)
      ('x', 'y', 'c', 'n')
    """
    return (*SPACE[: ndim - 2], "c", "n")


@register_packed("first", "second")
class Separable(Factors):
    """A kernel of two spatial axes as one along each: ``W[x, y, c, n] = sum_r first[x, c, r] second[y, r, n]``.

    Args:
      first: shape (..., height, in, r): the k x 1 convolution.
      second: shape (..., width, r, out): the 1 x k convolution.
      shape: the dense leaf's: (..., height, width, in, out).

    Example:
      >>> Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)).unpack().shape
      (3, 5, 2, 4)

    Source: Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions", scheme 2.
    """

    first: Any
    second: Any
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.first, self.second)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("xcr", "yrn")

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(4)


@register_packed("first", "core", "last")
class Tucker(Factors):
    """A kernel by a smaller one between fewer channels: ``W[.., c, n] = sum_{a, b} first[c, a] core[.., a, b] last[b, n]``.

    Args:
      first: shape (..., in, a).
      core: shape (..., *space, a, b).
      last: shape (..., b, out).
      shape: the dense leaf's: (..., *space, in, out).

    Example:
      >>> Tucker(jnp.ones((4, 2)), jnp.ones((3, 3, 2, 1)), jnp.ones((1, 5)), (3, 3, 4, 5)).unpack().shape
      (3, 3, 4, 5)

    Source: Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile
    applications", eq. 3.
    """

    first: Any
    core: Any
    last: Any
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.first, self.core, self.last)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("ca", f"{SPACE[: self._space]}ab", "bn")

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(self._space + 2)

    @property
    def _space(self) -> int:
        return len(self.core.shape) - len(self.first.shape)


@register_packed("factors")
class CP(Factors):
    """A tensor as a sum of outer products: ``W[x, y, c, n] = sum_r f0[x, r] f1[y, r] f2[c, r] f3[n, r]``.

    A convolution with it is one to r channels, one along each spatial axis of each channel by itself, and one to the outputs.

    Args:
      factors: one for each axis of the tensor, shape (..., size, r).
      shape: the dense leaf's.

    Example:
      >>> CP((jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.ones((5, 2))), (3, 4, 5)).unpack()[0, 0, 0]
      Array(2., dtype=float32)

    Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", eq. 2.
    """

    factors: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        *space, into, out = self.factors
        return (into, *space, out)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"{letter}r" for letter in channels_first(self.axes))

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(len(self.factors))


@register_packed("cores")
class TensorTrain(Factors):
    """A kernel as a chain: ``W[x, y, c, n] = sum g0[c, r0] g1[r0, x, r1] g2[r1, y, r2] g3[r2, n]``.

    Args:
      cores: of the input channels, shape (..., in, r); of each spatial axis, (..., r, size, r'); of the outputs, (..., r, out).
      shape: the dense leaf's: (..., *space, in, out).

    Example:
      >>> cores = (jnp.ones((4, 2)), jnp.ones((2, 3, 3)), jnp.ones((3, 5)))
      >>> TensorTrain(cores, (3, 4, 5)).unpack().shape
      (3, 4, 5)

    Source: Oseledets 2011, "Tensor-train decomposition", eq. 1.2; of kernels Garipov et al. 2016, "Ultimate tensorization",
    section 4, with an axis for each core.
    """

    cores: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.cores

    @property
    def labels(self) -> tuple[str, ...]:
        return chain_labels(channels_first(self.axes))

    @property
    def axes(self) -> tuple[str, ...]:
        return kernel_axes(len(self.cores))


@register_packed("cores")
class TensorTrainMatrix(Factors):
    """A matrix of many modes as a chain: ``W[(i1, i2, ..), (j1, j2, ..)] = sum g1[i1, j1, r1] g2[r1, i2, j2, r2] ...``.

    Rows and columns are numbers of several digits i and j, the first the slowest.

    Args:
      cores: shapes (..., i1, j1, r1), (..., r1, i2, j2, r2), ..., (..., r, i, j); two at least.
      shape: the dense leaf's: (..., i1 i2 .., j1 j2 ..).

    Example:
      >>> TensorTrainMatrix((jnp.ones((2, 3, 1)), jnp.ones((1, 4, 5))), (8, 15)).unpack().shape
      (8, 15)

    Source: Novikov et al. 2015, "Tensorizing neural networks", eq. 3.
    """

    cores: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.cores

    @property
    def labels(self) -> tuple[str, ...]:
        rows, columns = self.axes
        return chain_labels(tuple(f"{i}{j}" for i, j in zip(rows, columns)))

    @property
    def axes(self) -> tuple[str, ...]:
        count = len(self.cores)
        return (ascii_letters[:count], ascii_letters[count : 2 * count])


def channels_first(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes of a kernel in the order in which the parts of one have them: inputs, space, outputs."""
    return (axes[-2], *axes[:-2], axes[-1])


def chain_labels(inner: tuple[str, ...]) -> tuple[str, ...]:
    """Letters of a chain's parts, given those of their own axes.

    Example:
      >>> chain_labels(("c", "x", "n"))
      ('cA', 'AxB', 'Bn')
    """
    links = ["", *ascii_letters[26 : 25 + len(inner)], ""]
    return tuple(f"{left}{own}{right}" for left, own, right in zip(links, inner, links[1:]))


def sizes(leaf: Factors) -> dict[str, int]:
    """Return the size of every letter.

    Raises:
      ValueError: if parts disagree about one, or about their stacked axes.

    Example:
      >>> sizes(Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)))
      {'x': 3, 'c': 2, 'r': 1, 'y': 5, 'n': 4}
    """
    found: dict[str, int] = {}
    stack = tuple(leaf.parts[0].shape[: leaf.stacked])
    for part, label in zip(leaf.parts, leaf.labels):
        lead = len(part.shape) - len(label)
        agree = lead == leaf.stacked >= 0 and tuple(part.shape[:lead]) == stack
        if not agree or any(found.setdefault(a, n) != n for a, n in zip(label, part.shape[lead:])):
            shapes = ", ".join(str(tuple(part.shape)) for part in leaf.parts)
            raise ValueError(f"parts of shapes {shapes} do not fit together as {', '.join(leaf.labels)}")
    return found


def dense_shape(leaf: Factors) -> tuple[int, ...]:
    """Return the shape that follows from the parts.

    Raises:
      ValueError: if they do not fit together.

    Example:
      >>> dense_shape(Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)))
      (3, 5, 2, 4)
    """
    by_letter = sizes(leaf)
    stack = leaf.parts[0].shape[: leaf.stacked]
    return (*stack, *(math.prod(by_letter[letter] for letter in axis) for axis in leaf.axes))
