"""Block-sparse matrices as packed leaves, multiplied block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.packed import Composite, is_packed, register_packed
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.form import Native, array_of


@register_packed("blocks", "rows")
class BlockSparse(Composite):
    """A matrix of which whole blocks are zero; the others are stored, those of each column of blocks together.

    ``W[rows[c, k] * h + i, c * w + j] = blocks[c, k, i, j]``. Every column of blocks has as many slots as the fullest; a
    free slot has a row past the last one and zeros in its block.

    Args:
      blocks: shape (..., columns, slots, h, w).
      rows: int32, shape (..., columns, slots): the row of blocks that each block stands in.
      shape: the dense leaf's; all its axes but the last are read as the rows (and the stacked axes, if blocks has any).

    Example:
      >>> leaf = BlockSparse.from_dense(jnp.array([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [3.0, 4.0, 0.0]]), (2, 2))
      >>> leaf.blocks.shape, leaf.rows.tolist()
      ((2, 1, 2, 2), [[1], [0]])
      >>> leaf.unpack().tolist()
      [[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [3.0, 4.0, 0.0]]

    Source: the layout is that of Gray, Radford and Kingma 2017, "GPU kernels for block-sparse weights", by columns.
    """

    blocks: Array
    rows: Array
    shape: tuple[int, ...]

    node = 4

    @property
    def dtype(self) -> jnp.dtype:  # type: ignore[override]
        return self.blocks.dtype

    @classmethod
    def from_dense(cls, array: Array, block: tuple[int, int] = (32, 32), stacked: int = 0) -> BlockSparse:
        """Keep the blocks of an array that have a non-zero element (not under jit: their number must be known).

        Args:
          array: shape (*stack, *rows, n), two axes or more after the stacked ones.
          block: height and width of a block; the matrix is filled up with zeros to a multiple.
          stacked: how many leading axes are a stack of matrices (the layers of a scan).

        Raises:
          ValueError: if a block has a side below 1, or the array too few axes.
        """
        if min(block) < 1 or array.ndim < stacked + 2:
            raise ValueError(
                f"BlockSparse: needs blocks of positive sides and an array of at least {stacked + 2} axes; got block={block} "
                f"and shape {array.shape}."
            )
        height, width = block
        stack = array.shape[:stacked]
        dense = np.asarray(array).reshape(int(np.prod(stack)), -1, array.shape[-1])
        pad = [(0, 0), (0, -dense.shape[1] % height), (0, -dense.shape[2] % width)]
        dense = np.pad(dense, pad)
        n_rows, n_cols = dense.shape[1] // height, dense.shape[2] // width
        cut = dense.reshape(-1, n_rows, height, n_cols, width).transpose(0, 3, 1, 2, 4)
        used = (cut != 0).any(axis=(3, 4))
        slots = max(1, int(used.sum(axis=2).max(initial=0)))
        # Used blocks first, in the order of their rows.
        order = np.argsort(~used, axis=2, kind="stable")[:, :, :slots]
        filled = np.take_along_axis(used, order, axis=2)
        blocks = np.where(filled[..., None, None], np.take_along_axis(cut, order[..., None, None], axis=2), 0)
        rows = np.where(filled, order, n_rows).astype(np.int32)
        return cls(
            jnp.asarray(blocks.reshape(*stack, *blocks.shape[1:])),
            jnp.asarray(rows.reshape(*stack, *rows.shape[1:])),
            array.shape,
        )

    def unpack(self) -> Array:
        *stack, n_cols, slots, height, width = self.blocks.shape
        m, n = rows_of(self.shape, len(stack)), self.shape[-1]
        n_rows = -(-m // height)
        blocks = self.blocks.reshape(-1, n_cols, slots, height, width)
        rows = self.rows.reshape(-1, n_cols, slots)
        layer, column = jnp.arange(blocks.shape[0])[:, None, None], jnp.arange(n_cols)[None, :, None]
        dense = jnp.zeros((blocks.shape[0], n_rows, n_cols, height, width), self.dtype)
        dense = dense.at[layer, rows, column].set(blocks, mode="drop")
        dense = dense.transpose(0, 1, 3, 2, 4).reshape(-1, n_rows * height, n_cols * width)
        return dense[:, :m, :n].reshape(self.shape)

    def numbers(self) -> int:
        return self.blocks.size

    def nonzeros(self) -> int:
        return int(jnp.count_nonzero(self.unpack()))

    def check(self, shape: tuple[int, ...]) -> None:
        if any(is_packed(part) for part in (self.blocks, self.rows)):
            raise ValueError("its blocks and rows are no arrays")
        blocks, rows, stack = self.blocks.shape, self.rows, len(self.blocks.shape) - 4
        fits = 0 <= stack <= len(shape) - 2 and blocks[:-2] == rows.shape and rows.dtype == "int32"
        fits = fits and min(blocks[-2:]) > 0 and blocks[:stack] == shape[:stack]
        if not fits or -(-shape[-1] // blocks[-1]) != blocks[stack]:
            raise ValueError(f"blocks of shape {blocks} in rows of shape {rows.shape} make no tensor of shape {shape}")
        most = -(-rows_of(shape, stack) // blocks[-2])
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) <= most:
            raise ValueError(f"a block beyond the {most} rows of blocks of a tensor of shape {shape}")

    def native(self, path: Path) -> Blocked:
        return Blocked(self.blocks, self.rows, self.shape[self.blocks.ndim - 4 :], path)


@register_packed("blocks", "places")
class Blocked(Native):
    """Block-sparse; see `BlockSparse`. `layout` is the dense shape without stacked axes."""

    blocks: Array
    places: Array
    layout: tuple[int, ...]
    path: Path

    kind = "BlockSparse"

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.blocks.shape[:-4], *self.layout)

    def dense(self) -> Array:
        return BlockSparse(self.blocks, self.places, self.shape).unpack()

    def dot(self, lhs: Any, rhs: Any, params: Mapping[str, Any]) -> Array | None:
        contracting, batch = params["dimension_numbers"]
        side = 0 if lhs is self else 1
        x, w_axes, x_axes = array_of((rhs, lhs)[side]), contracting[side], contracting[1 - side]
        if x is None or batch[0] or self.blocks.ndim != 4 or sorted(w_axes) != list(range(len(self.layout) - 1)):
            return None
        free = [axis for axis in range(x.ndim) if axis not in x_axes]
        order = [x_axes[w_axes.index(axis)] for axis in range(len(w_axes))]
        out = self._multiplied(jnp.transpose(x, (*free, *order)), len(free))
        return jnp.moveaxis(out, -1, 0) if side == 0 else out

    def conv(self, x: Any, kernel: Any, params: Mapping[str, Any]) -> Array | None:
        """Patches of the images, times the blocks."""
        numbers, x = params["dimension_numbers"], array_of(x)
        grouped = params["feature_group_count"] != 1 or params["batch_group_count"] != 1
        spec, out_axis = numbers.rhs_spec, numbers.out_spec[1]
        if kernel is not self or x is None or grouped or self.blocks.ndim != 4 or spec[0] != len(self.layout) - 1:
            return None
        steps = (params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"])
        sizes = [self.layout[axis] for axis in spec[2:]]
        patches = jax.lax.conv_general_dilated_patches(x, sizes, *steps, numbers, precision=params["precision"])
        # Patches have the input channels first, then the kernel's axes; the weight's rows have its own order.
        patches = jnp.moveaxis(patches, out_axis, -1)
        lead = patches.ndim - 1
        parts = patches.reshape(*patches.shape[:-1], *(self.layout[axis] for axis in spec[1:]))
        parts = jnp.transpose(parts, (*range(lead), *(lead + int(i) for i in np.argsort(np.array(spec[1:])))))
        return jnp.moveaxis(self._multiplied(parts, lead), -1, out_axis)

    def rows(self, index: Array) -> Array | None:
        return take_rows(self.blocks, self.places, index, self.shape[1]) if len(self.shape) == 2 else None

    def _multiplied(self, x: Array, lead: int) -> Array:
        """The product of x, whose axes after `lead` are the rows of the matrix."""
        out = multiply(x.reshape(-1, math.prod(self.layout[:-1])), self.blocks, self.places, self.layout[-1])
        return out.reshape(*x.shape[:lead], self.layout[-1])


def rows_of(shape: tuple[int, ...], stacked: int = 0) -> int:
    """The number of rows of a leaf read as a matrix."""
    return int(np.prod(shape[stacked:-1]))


def multiply(x: Array, blocks: Array, rows: Array, n: int) -> Array:
    """Return ``x @ W`` for a block-sparse W, reading only its blocks.

    Args:
      x: shape (b, m).
      blocks: shape (columns, slots, h, w).
      rows: shape (columns, slots).
      n: the columns of W.

    Returns:
      shape (b, n).

    Example:
      >>> leaf = BlockSparse.from_dense(jnp.array([[0.0, 1.0], [0.0, 2.0]]), (1, 1))
      >>> multiply(jnp.array([[1.0, 10.0]]), leaf.blocks, leaf.rows, 2).tolist()
      [[0.0, 21.0]]
    """
    n_cols, slots, height, width = blocks.shape
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % height))).reshape(x.shape[0], -1, height)
    # Free slots point past the last row: they read zeros, not a value that may be infinite.
    read = jnp.take(x, rows.reshape(-1), axis=1, mode="fill", fill_value=0)
    read = read.reshape(x.shape[0], n_cols, slots * height)
    out = jnp.einsum("bcs,csw->bcw", read, blocks.reshape(n_cols, slots * height, width))
    return out.reshape(x.shape[0], n_cols * width)[:, :n]


def take_rows(blocks: Array, rows: Array, index: Array, n: int) -> Array:
    """Return rows of a block-sparse matrix as dense ones.

    Args:
      blocks: shape (columns, slots, h, w).
      rows: shape (columns, slots).
      index: integers of shape (k,).
      n: the columns of the matrix.

    Returns:
      shape (k, n).
    """
    height = blocks.shape[2]
    block, within = index // height, index % height
    hit = rows[None] == block[:, None, None]
    lines = jnp.moveaxis(jnp.take(blocks, within, axis=2, mode="clip"), 2, 0)
    found = jnp.sum(jnp.where(hit[..., None], lines, 0), axis=2)
    return found.reshape(index.shape[0], -1)[:, :n]
