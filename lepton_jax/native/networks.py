"""Dots, convolutions and gathers on tensors that are networks of smaller ones, one part after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.packed import unpack
from lepton_jax.core.typing import Array, Path
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.networks import Factors, contract
from lepton_jax.native.operands import Factored, Native


@dataclass(frozen=True, eq=False)
class Network(Native):
    """The product of `parts`, summed over every letter that is in no axis; see `Factors`.

    Args:
      parts: all with the same leading stacked axes, which are in no label.
      labels: a letter for each other axis of each part.
      axes: for each other axis of the tensor its letters.
      kind: name of the leaf's type.
    """

    parts: tuple[Array, ...]
    labels: tuple[str, ...]
    axes: tuple[str, ...]
    kind: str
    dtype: str
    path: Path

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every letter."""
        return {a: n for part, label in zip(self.parts, self.labels) for a, n in zip(label, part.shape[self.stacked :])}

    @property
    def stacked(self) -> int:
        """How many leading axes stack weights."""
        return len(self.parts[0].shape) - len(self.labels[0])

    @property
    def shape(self) -> tuple[int, ...]:
        stack = tuple(self.parts[0].shape[: self.stacked])
        return (*stack, *(self.size(axis) for axis in self.axes))

    def size(self, letters: str) -> int:
        """The product of some letters' sizes."""
        sizes = self.sizes
        return math.prod(sizes[letter] for letter in letters)

    def dense(self) -> Array:
        return contract(self.parts, self.labels, "".join(self.axes)).reshape(self.shape).astype(self.dtype)

    def layers(self, length: int) -> Network | None:
        """The same, every part of it with a leading axis of a scan's length; None if it cannot be taken apart."""
        if self.stacked:
            return self if self.shape[0] == length else None
        letter = self.axes[0]
        if self.shape[0] != length or len(letter) != 1:
            return None
        parts = [
            jnp.moveaxis(part, label.index(letter), 0) if letter in label else jnp.broadcast_to(part, (length, *part.shape))
            for part, label in zip(self.parts, self.labels)
        ]
        labels = tuple(label.replace(letter, "") for label in self.labels)
        return replace(self, parts=tuple(parts), labels=labels, axes=self.axes[1:])


jax.tree_util.register_dataclass(Network, data_fields=["parts"], meta_fields=["labels", "axes", "kind", "dtype", "path"])


def network(leaf: Any, path: Path) -> Network | None:
    """Return a factored leaf in the form in which it runs; None for one that is no network.

    Of a `LowRank`: one whose columns are several axes of the leaf.
    """
    if isinstance(leaf, Factors):
        parts = tuple(unpack(part) for part in leaf.parts)
        return Network(parts, leaf.labels, leaf.axes, type(leaf).__name__, str(leaf.dtype), path)
    if not isinstance(leaf, LowRank) or leaf.v.shape[-1] == leaf.shape[-1]:
        return None
    u, v = unpack(leaf.u), unpack(leaf.v)
    stack, shape = u.shape[:-2], leaf.shape[u.ndim - 2 :]
    cuts = [cut for cut in range(1, len(shape)) if math.prod(shape[:cut]) == u.shape[-2]]
    if leaf.shape[: len(stack)] != stack or not cuts:
        return None
    letters, cut = ascii_letters[: len(shape)], cuts[0]
    u, v = u.reshape(*stack, *shape[:cut], -1), v.reshape(*stack, -1, *shape[cut:])
    return Network((u, v), (f"{letters[:cut]}R", f"R{letters[cut:]}"), tuple(letters), "LowRank", str(leaf.dtype), path)


def run(eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Run an operation on networks; None if it has no way to.

    A `Factored` is one too; what is done with it elsewhere should be tried first.
    """
    out: Any
    match eqn.primitive:
        case "dot_general":
            out = _dot(values[0], values[1], eqn.params)
        case "conv_general_dilated":
            out = _conv(values[0], values[1], eqn.params)
        case "gather":
            out = _gather(values[0], values[1], eqn.params)
        case "transpose" | "reshape" | "squeeze" | "broadcast_in_dim":
            out = _moved(eqn, values[0])
        case _:
            return None
    return None if out is None else [out.astype(eqn.out_avals[0].dtype) if isinstance(out, jax.Array) else out]


def _as_network(value: Any) -> Network | None:
    """A weight that is one, and has no stacked axes."""
    if isinstance(value, Factored) and len(value.v.shape) == 2:
        letters = ascii_letters[: len(value.shape)]
        labels = (f"{letters[:-1]}R", f"R{letters[-1]}")
        u, v = (part.dense() if isinstance(part, Native) else part for part in (value.u, value.v))
        value = Network((u, v), labels, tuple(letters), "LowRank", value.dtype, value.path)
    return value if isinstance(value, Network) and not value.stacked else None


def _dot(lhs: Any, rhs: Any, params: Any) -> Array | None:
    contracting, batch = params["dimension_numbers"]
    found = [_as_network(lhs), _as_network(rhs)]
    if batch[0] or (found[0] is None) == (found[1] is None):
        return None
    side = 0 if found[0] is not None else 1
    weight, x, w_axes, x_axes = found[side], (lhs, rhs)[1 - side], contracting[side], contracting[1 - side]
    assert weight is not None
    x = x.dense() if isinstance(x, Native) else x
    free = [axis for axis in range(x.ndim) if axis not in x_axes]
    own = [axis for axis in range(len(weight.axes)) if axis not in w_axes]
    given, wanted = ("".join(weight.axes[axis] for axis in axes) for axes in (w_axes, own))
    sizes = weight.sizes
    lead = [x.shape[axis] for axis in free]
    x = jnp.transpose(x, (*free, *x_axes)).reshape(*lead, *(sizes[letter] for letter in given))
    out = _through(x, given, weight, wanted, params["precision"])
    out = out.reshape(*lead, *(weight.shape[axis] for axis in own))
    # The result has the free axes of the left side first.
    return jnp.moveaxis(out, tuple(range(len(free))), tuple(range(-len(free), 0))) if side == 0 else out


def _through(x: Array, letters: str, weight: Network, wanted: str, precision: Any) -> Array:
    """Sum over `letters`, the last axes of x, part by part from that end of the network where it costs less."""
    pairs = list(zip(weight.parts, weight.labels))
    if _cost(weight, letters, wanted, weight.labels[::-1]) < _cost(weight, letters, wanted, weight.labels):
        pairs.reverse()
    for place, (part, label) in enumerate(pairs):
        kept = _kept(letters, label, wanted, [later for _, later in pairs[place + 1 :]])
        x = jnp.einsum(f"...{letters},{label}->...{kept}", x, part.astype(x.dtype), precision=precision)
        letters = kept
    return jnp.einsum(f"...{letters}->...{wanted}", x)


def _kept(letters: str, label: str, wanted: str, later: Sequence[str]) -> str:
    """The letters that are left when a part has been multiplied in."""
    needed = {*wanted, *"".join(later)}
    return "".join(letter for letter in dict.fromkeys(letters + label) if letter in needed)


def _cost(weight: Network, letters: str, wanted: str, labels: Sequence[str]) -> int:
    """Multiplications, for one row of inputs, in an order of the parts."""
    total = 0
    for place, label in enumerate(labels):
        total += weight.size("".join({*letters, *label}))
        letters = _kept(letters, label, wanted, labels[place + 1 :])
    return total


def _conv(x: Any, kernel: Any, params: Any) -> Array | None:
    """One convolution a part: along its own spatial axes; a dot if it has none."""
    weight, numbers = _as_network(kernel), params["dimension_numbers"]
    if weight is None or params["batch_group_count"] != 1 or any(len(axis) != 1 for axis in weight.axes):
        return None
    outputs, channel, *space = (weight.axes[axis] for axis in numbers.rhs_spec)
    pairs = list(zip(weight.parts, weight.labels))
    if channel not in pairs[0][1]:
        pairs.reverse()
    x = x.dense() if isinstance(x, Native) else x
    x = jnp.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    for place, (part, label) in enumerate(pairs):
        later = {*outputs, *"".join(label for _, label in pairs[place + 1 :])}
        fresh = [letter for letter in label if letter != channel and letter not in space]
        by_channel = channel in later
        if channel not in label or len(fresh) != 1 - by_channel:
            return None
        arranged = _arranged(part.astype(x.dtype), label, space, [channel, *fresh])
        x = _conv_step(x, arranged, [letter in label for letter in space], by_channel, fresh != [outputs], params)
        channel = channel if by_channel else fresh[0]
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return jnp.transpose(x, [order.index(axis) for axis in range(x.ndim)])


def _arranged(part: Array, label: str, space: Sequence[str], channels: Sequence[str]) -> Array:
    """A part as a kernel (*space, in, out), with size 1 where it has no axis."""
    order = [label.index(letter) for letter in [*(a for a in space if a in label), *channels]]
    missing = [axis for axis, letter in enumerate(space) if letter not in label]
    return jnp.expand_dims(jnp.transpose(part, order), missing if len(channels) == 2 else [*missing, len(space)])


def _conv_step(x: Array, kernel: Array, own: Sequence[bool], by_channel: bool, inner: bool, params: Any) -> Array:
    """Convolve (batch, *space, channels) with one part.

    Args:
      kernel: (*space, in, out).
      own: which spatial axes are the part's.
      by_channel: each channel by itself.
      inner: the result is between two parts: every group has all these channels.
    """
    groups, count, precision = params["feature_group_count"], len(own), params["precision"]
    if groups == 1 and not any(own) and not by_channel:
        return jnp.einsum("...c,cn->...n", x, kernel.reshape(kernel.shape[-2:]), precision=precision)
    if inner and groups > 1:
        kernel = jnp.tile(kernel, (*(1,) * (kernel.ndim - 1), groups))
    if by_channel:
        return _shifted(x, kernel, own, params)
    layout = (0, count + 1, *range(1, count + 1))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[n if mine else 1 for n, mine in zip(params["window_strides"], own)],
        padding=[n if mine else (0, 0) for n, mine in zip(params["padding"], own)],
        lhs_dilation=[n if mine else 1 for n, mine in zip(params["lhs_dilation"], own)],
        rhs_dilation=[n if mine else 1 for n, mine in zip(params["rhs_dilation"], own)],
        dimension_numbers=jax.lax.ConvDimensionNumbers(layout, (count + 1, count, *range(count)), layout),
        feature_group_count=groups,
        precision=precision,
    )


def _shifted(x: Array, kernel: Array, own: Sequence[bool], params: Any) -> Array:
    """Convolve every channel by itself: a sum of shifted images, several times faster on CPU than a grouped convolution."""
    edges, reach, steps = [(0, 0, 0)], [], []
    for axis, mine in enumerate(own):
        low, high = params["padding"][axis]
        edges.append((low, high, params["lhs_dilation"][axis] - 1) if mine else (0, 0, 0))
        reach.append(params["rhs_dilation"][axis] if mine else 1)
        steps.append(params["window_strides"][axis] if mine else 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [*edges, (0, 0, 0)])
    sizes = kernel.shape[: len(own)]
    spans = [
        max(0, length - dilation * (size - 1)) for length, dilation, size in zip(x.shape[1:], reach, sizes)
    ]  # of the positions that the first element of the kernel visits
    out = jnp.zeros((), x.dtype)
    for place in np.ndindex(*sizes):
        start = [0, *(at * dilation for at, dilation in zip(place, reach)), 0]
        limit = [x.shape[0], *(begin + span for begin, span in zip(start[1:], spans)), x.shape[-1]]
        out = out + jax.lax.slice(x, start, limit, (1, *steps, 1)) * kernel[place].reshape((1,) * (x.ndim - 1) + (-1,))
    return out


def _gather(table: Any, indices: Any, params: Any) -> Array | None:
    """Whole rows of a matrix, one index each, as an embedding looks them up."""
    weight, numbers = _as_network(table), params["dimension_numbers"]
    if weight is None or isinstance(indices, Native) or len(weight.axes) != 2:
        return None
    whole = tuple(params["slice_sizes"]) == (1, weight.shape[1]) and numbers.start_index_map == (0,)
    last = numbers.collapsed_slice_dims == (0,) and numbers.offset_dims == (indices.ndim - 1,)
    if not whole or not last or numbers.operand_batching_dims:
        return None
    index = indices[..., 0]
    out = _rows(weight, jnp.clip(index, 0, weight.shape[0] - 1))
    if params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return out
    inside = (index >= 0) & (index < weight.shape[0])
    return jnp.where(inside[..., None], out, jnp.nan if params["fill_value"] is None else params["fill_value"])


def _rows(weight: Network, index: Array) -> Array:
    """Rows of a matrix: of each part those that the digits of the index say, multiplied together."""
    digits, rest, sizes = {}, index, weight.sizes
    for letter in weight.axes[0][::-1]:
        rest, digits[letter] = jnp.divmod(rest, sizes[letter])
    pairs = list(zip(weight.parts, weight.labels))
    if not set(weight.axes[0]) & set(pairs[0][1]):
        pairs.reverse()
    out, letters = jnp.ones((1,) * index.ndim, weight.dtype), ""
    for place, (part, label) in enumerate(pairs):
        mine = [letter for letter in label if letter in digits]
        left = "".join(letter for letter in label if letter not in digits)
        array = jnp.moveaxis(part, [label.index(letter) for letter in mine], range(len(mine)))
        array = array[tuple(digits[letter] for letter in mine)] if mine else array
        kept = _kept(letters, left, weight.axes[1], [later for _, later in pairs[place + 1 :]])
        out = jnp.einsum(f"...{letters},...{left}->...{kept}", out, array)
        letters = kept
    return jnp.einsum(f"...{letters}->...{weight.axes[1]}", out).reshape(*index.shape, weight.shape[1])


def _moved(eqn: Equation, value: Any) -> Network | None:
    """A network through an operation that permutes, joins or splits its axes."""
    weight = _as_network(value)
    if weight is None:
        return None
    if eqn.primitive == "transpose":
        return replace(weight, axes=tuple(weight.axes[axis] for axis in eqn.params["permutation"]))
    shape, letters = eqn.out_avals[0].shape, "".join(weight.axes)
    permuted = eqn.primitive == "reshape" and eqn.params.get("dimensions") is not None
    if permuted or math.prod(shape) != math.prod(weight.shape):
        return None
    sizes, axes, rest = weight.sizes, [], list(letters)
    for length in shape:
        axis = ""
        while rest and math.prod(sizes[letter] for letter in axis) < length:
            axis += rest.pop(0)
        if math.prod(sizes[letter] for letter in axis) != length:
            return None
        axes.append(axis)
    return replace(weight, axes=(*axes[:-1], axes[-1] + "".join(rest)))  # what is left has size 1
