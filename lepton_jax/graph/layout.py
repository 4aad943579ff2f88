"""A leaf as the matrix, or the matrices, that its inputs are multiplied by."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.graph.trace import CallPath, Equation

_TOGETHER = 2**24
"""How many numbers of stacked matrices, and of their Hessians, are worked on at a time."""


class Sides(NamedTuple):
    """How the matrices of a layer stand in a leaf that is one of (rows, columns), or a stack of them.

    Attributes:
      turned: whether the outputs are the rows.
      inputs: where in the leaf, along the side that they are, the layer's inputs are.
      outputs: likewise.
    """

    turned: bool
    inputs: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A leaf as the matrix that its inputs are multiplied by: ``inputs @ matrix(leaf)``; or as a stack of such matrices.

    Args:
      shape: of the leaf.
      index: (*stacked, inputs, outputs), the flat position in the leaf of every entry of the matrix; each position once.
        Stacked are the layers of scans, from outside in, and then the groups of a convolution, or the batch axes of a dot.

    Example:
      >>> layout = Layout(shape=(3, 2), index=np.arange(6).reshape(3, 2).T)  # a leaf that is used transposed
      >>> layout.matrix(jnp.arange(6.0).reshape(3, 2)).tolist()
      [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
      >>> layout.leaf(layout.matrix(jnp.arange(6.0).reshape(3, 2))).tolist()
      [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    """

    shape: tuple[int, ...]
    index: np.ndarray

    @property
    def stacked(self) -> tuple[int, ...]:
        """How many matrices there are, axis by axis; () for a single one."""
        return self.index.shape[:-2]

    @property
    def inputs(self) -> int:
        """Of each matrix."""
        return self.index.shape[-2]

    @property
    def outputs(self) -> int:
        """Of each matrix."""
        return self.index.shape[-1]

    @cached_property
    def in_order(self) -> bool:
        """Whether the matrix is the leaf reshaped."""
        return bool((self.index.reshape(-1) == np.arange(self.index.size)).all())

    @cached_property
    def sides(self) -> "Sides | None":
        """How the leaf, after its stacked axes, is a matrix of rows and columns; None if it is none."""
        size = self.inputs * self.outputs
        if self.shape[: len(self.stacked)] != self.stacked or not size:
            return None
        index = self.index.reshape(-1, self.inputs, self.outputs)
        one, first = index[0], size * np.arange(len(index))[:, None, None]
        if not np.array_equal(index - first, np.broadcast_to(one, index.shape)):
            return None
        for turned, width in ((False, self.outputs), (True, self.inputs)):
            rows, columns = one // width, one % width
            inputs, outputs = (columns[:, 0], rows[0]) if turned else (rows[:, 0], columns[0])
            if np.array_equal(one, (outputs[None] * width + inputs[:, None]) if turned else inputs[:, None] * width + outputs):
                return Sides(turned, inputs, outputs)
        return None

    def matrix(self, leaf: Array) -> Array:
        """Return the leaf's entries as (*stacked, inputs, outputs)."""
        flat = jnp.reshape(leaf, -1)
        return (flat if self.in_order else flat[self.index.reshape(-1)]).reshape(self.index.shape)

    def leaf(self, matrix: Array) -> Array:
        """Return matrices of (*stacked, inputs, outputs) in the leaf's shape."""
        flat = jnp.reshape(matrix, -1)
        if not self.in_order:
            flat = jnp.zeros_like(flat).at[self.index.reshape(-1)].set(flat, unique_indices=True)
        return flat.reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """A dot or a convolution with a leaf.

    Args:
      operation: its path.
      name: its name.
      operand: which of its operands comes from the leaf.
      layout: the leaf as a matrix.
      levels: which of the scans around the operation, from outside in, take the leaf apart; the first axes of the stack.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> from lepton_jax.graph.weights import weight_uses
      >>> graph = trace(lambda v, x: v["w"].T @ x, {"w": jnp.ones((3, 2))}, jnp.ones((3, 5)))
      >>> [use] = weight_uses(graph, ["w"])["w"]
      >>> use.name, use.operand, use.layout.shape
      ('dot_general', 0, (3, 2))
    """

    operation: CallPath
    name: str
    operand: int
    layout: Layout
    levels: tuple[int, ...] = ()

    def rows(self, values: Array) -> Array:
        """Return rows (*scans, *groups, rows, inputs), of all steps of all scans, as (*stacked, rows, inputs)."""
        groups = len(self.layout.stacked) - len(self.levels)
        scans = values.ndim - 2 - groups
        again = [axis for axis in range(scans) if axis not in self.levels]  # the same weights: more rows
        order = (*self.levels, *range(scans, scans + groups), *again, values.ndim - 2, values.ndim - 1)
        return jnp.transpose(values, order).reshape(*self.layout.stacked, -1, values.shape[-1])


def as_matrix(eqn: Equation, place: int, index: np.ndarray, lead: int) -> np.ndarray | None:
    """Return positions in a leaf as (*lead, *groups, inputs, outputs) of the product that has them as its operand.

    Args:
      eqn: a dot or a convolution.
      place: which of its operands.
      index: (*lead, *the operand's shape), positions in the leaf.
      lead: how many axes stack operands of several steps.

    Returns:
      None where the operand is no weight: the left one of a convolution, or one with groups of the batch.
    """
    steps, params = tuple(range(lead)), eqn.params
    if eqn.primitive == "dot_general":
        axes, batch = (tuple(sides[place]) for sides in params["dimension_numbers"])
        free = tuple(axis for axis in range(index.ndim - lead) if axis not in (*axes, *batch))
        moved = np.transpose(index, (*steps, *(lead + axis for axis in (*batch, *axes, *free))))
        sizes = [index.shape[lead + axis] for axis in batch]
        width, height = (math.prod(index.shape[lead + axis] for axis in some) for some in (axes, free))
        return moved.reshape(*index.shape[:lead], *sizes, width, height)
    if place != 1 or params["batch_group_count"] != 1:
        return None
    out, into, *space = params["dimension_numbers"].rhs_spec
    groups, count = params["feature_group_count"], index.shape[lead + out]
    moved = np.transpose(index, (*steps, *(lead + axis for axis in (out, *space, into))))
    width = math.prod(moved.shape[lead + 1 :])
    split = (groups,) if groups > 1 else ()
    return np.swapaxes(moved.reshape(*index.shape[:lead], *split, count // groups, width), -1, -2)


@checked
def input_rows(use: Use, eqn: Equation, values: Sequence[Any]) -> Array:
    """Return what a leaf is multiplied by: rows of inputs, such that the operation's result is ``rows @ matrix``, reshaped.

    Args:
      use: of the leaf, by this operation.
      eqn: the dot or convolution.
      values: its operands.

    Returns:
      (*groups, rows, inputs). Of a convolution: the patches under the kernel, position by position, padding as zeros; groups
      are those of a convolution, or the batch axes of a dot.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> from lepton_jax.graph.weights import weight_uses
      >>> graph = trace(lambda v, x: x @ v, jnp.ones((2, 1)), jnp.ones((4, 3, 2)))
      >>> [use] = weight_uses(graph, [""])[""]
      >>> input_rows(use, next(graph.equations()), [jnp.ones((4, 3, 2)), jnp.ones((2, 1))]).shape
      (12, 2)
    """
    x = values[1 - use.operand]
    if eqn.primitive == "dot_general":
        axes, batch = (sides[1 - use.operand] for sides in eqn.params["dimension_numbers"])
        free = [axis for axis in range(x.ndim) if axis not in (*axes, *batch)]
        count = math.prod(x.shape[axis] for axis in free)
        return jnp.transpose(x, (*batch, *free, *axes)).reshape(*(x.shape[a] for a in batch), count, use.layout.inputs)
    patches = _patches(eqn, x)
    groups, (*positions, window, channels) = eqn.params["feature_group_count"], patches.shape
    rows = math.prod(positions)
    if groups == 1:
        return patches.reshape(rows, window * channels)
    apart = jnp.moveaxis(patches.reshape(rows, window, groups, channels // groups), 2, 0)
    return apart.reshape(groups, rows, use.layout.inputs)


def each_matrix(solve: Callable[[PyTree], PyTree], matrices: PyTree, layout: Layout) -> PyTree:
    """Map a function of one matrix over those that a leaf stacks, several at a time.

    Args:
      solve: of a tree of arrays.
      matrices: the tree, its arrays with the leading axes `layout.stacked`.
      layout: the leaf as matrices.

    Example:
      >>> layout = Layout(shape=(2, 3, 1), index=np.arange(6).reshape(2, 3, 1))
      >>> each_matrix(jnp.sum, layout.matrix(jnp.ones((2, 3, 1))), layout).tolist()
      [3.0, 3.0]
    """
    stack = layout.stacked
    if not stack:
        return solve(matrices)
    flat = jax.tree.map(lambda part: part.reshape(-1, *part.shape[len(stack) :]), matrices)
    one = layout.inputs * (layout.inputs + layout.outputs)
    found = jax.lax.map(solve, flat, batch_size=max(1, min(math.prod(stack), _TOGETHER // max(one, 1))))
    return jax.tree.map(lambda part: part.reshape(*stack, *part.shape[1:]), found)


def _patches(eqn: Equation, x: Array) -> Array:
    """What is under a convolution's kernel: (batch, *positions, window, channels)."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    kernel, result = eqn.in_avals[1].shape, eqn.out_avals[0].shape
    window = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    sizes = [result[axis] for axis in numbers.out_spec[2:]]
    batch, channel, *space = numbers.lhs_spec
    around = [(low, high, step - 1) for (low, high), step in zip(params["padding"], params["lhs_dilation"])]
    x = jax.lax.pad(jnp.transpose(x, (batch, *space, channel)), jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    for axis in reversed(range(len(window))):  # the last first: so its places in the window come out last
        step, apart = params["window_strides"][axis], params["rhs_dilation"][axis]
        starts = [place * apart for place in range(window[axis])]
        extent = (sizes[axis] - 1) * step + 1 if sizes[axis] else 0
        views = [jax.lax.slice_in_dim(x, start, start + extent, step, 1 + axis) for start in starts]
        x = jnp.stack(views, axis=1 + len(window))
    return x.reshape(x.shape[0], *sizes, math.prod(window), x.shape[-1])


__all__ = ["Layout", "Sides", "Use", "as_matrix", "each_matrix", "input_rows"]
