"""Tensors as networks of smaller ones: the kin of `LowRank` for convolutions, and for matrices of many modes.

Each is a factored leaf: its parts are leaves of their own (``Conv_0/kernel/core``), which may be pruned, quantized or
factored in turn. A letter names each axis of each part; axes of one letter are summed over, or are axes of the dense tensor::

    W[h, w, c, n] = sum_{a, b} first[c, a] core[h, w, a, b] last[b, n]

The parts stand in the order in which an input meets them. All may have the same leading axes, of stacked weights.
"""

from __future__ import annotations

import math
from string import ascii_letters
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.packed import Composite, unpack
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.form import part_of
from lepton_jax.leaves.network import Network, contract

SPACE = "xyz"
"""Letters of a kernel's spatial axes; its input and output channels are c and n."""


class Factors(Composite):
    """Base of the tensors made of smaller ones.

    Example:
      >>> from lepton_jax.leaves import Separable
      >>> Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)).labels
      ('xcr', 'yrn')
    """

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return jnp.result_type(*(part.dtype for part in self.parts))

    @property
    def parts(self) -> tuple[Any, ...]:
        """The smaller tensors, in the order in which an input meets them."""
        return tuple(self.children().values())

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

    def check(self, shape: tuple[int, ...]) -> None:
        if dense_shape(self) != shape:
            given = ", ".join(str(tuple(part.shape)) for part in self.children().values())
            raise ValueError(f"parts of shapes {given} make no {type(self).__name__} of shape {shape}")

    def native(self, path: Path) -> Network:
        parts = tuple(part_of(part, path) for part in self.parts)
        return Network(parts, self.labels, self.axes, type(self).__name__, str(self.dtype), path)


def kernel_axes(ndim: int) -> tuple[str, ...]:
    """Letters of the axes (*space, in, out) of a convolution's kernel.

    Example:
      >>> kernel_axes(4)
      ('x', 'y', 'c', 'n')
    """
    return (*SPACE[: ndim - 2], "c", "n")


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
      >>> from lepton_jax.leaves import Separable
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
      >>> from lepton_jax.leaves import Separable
      >>> dense_shape(Separable(jnp.ones((3, 2, 1)), jnp.ones((5, 1, 4)), (3, 5, 2, 4)))
      (3, 5, 2, 4)
    """
    by_letter = sizes(leaf)
    stack = leaf.parts[0].shape[: leaf.stacked]
    return (*stack, *(math.prod(by_letter[letter] for letter in axis) for axis in leaf.axes))
