"""The native form of factored leaves: networks of smaller tensors, on which operations run one part after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.packed import register_packed
from lepton_jax.core.typing import Array, Path
from lepton_jax.leaves.form import Native, Operation, array_of


def contract(parts: Sequence[Array], labels: Sequence[str], letters: str) -> Array:
    """Sum the product of parts over all letters but those given, stacked axes in front.

    Example:
      >>> contract([jnp.ones((3, 2)), jnp.ones((2, 4))], ("ca", "an"), "cn").shape
      (3, 4)
    """
    names = ",".join(f"...{label}" for label in labels)
    return jnp.einsum(f"{names}->...{letters}", *parts, precision="highest")


@register_packed("parts")
class Network(Native):
    """The product of `parts`, summed over every letter that is in no axis; see `Factors`.

    Args:
      parts: arrays, or native forms; all with the same leading stacked axes, which are in no label.
      labels: a letter for each other axis of each part.
      axes: for each other axis of the tensor its letters.
      kind: name of the leaf's type.
    """

    parts: tuple[Any, ...]
    labels: tuple[str, ...]
    axes: tuple[str, ...]
    kind: str
    dtype: str
    path: Path

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every letter."""
        return {a: n for part, label in self.pairs for a, n in zip(label, part.shape[self.stacked :])}

    @property
    def pairs(self) -> list[tuple[Any, str]]:
        """Each part with its label."""
        return list(zip(self.parts, self.labels))

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
        parts = [_array(part) for part in self.parts]
        return contract(parts, self.labels, "".join(self.axes)).reshape(self.shape).astype(self.dtype)

    def layers(self, length: int) -> Network | None:
        if self.shape[0] != length:
            return None
        if self.stacked:
            return replace(self, parts=tuple(_apart(part, 0, length) for part in self.parts))
        letter = self.axes[0]
        if len(letter) != 1:
            return None
        parts = tuple(_apart(part, label.find(letter), length) for part, label in self.pairs)
        return replace(self, parts=parts, labels=tuple(label.replace(letter, "") for label in self.labels), axes=self.axes[1:])

    def taken(self, whole: Network) -> Network:
        parts = [part.taken(of) if isinstance(part, Native) else part for part, of in zip(self.parts, whole.parts)]
        return replace(self, parts=tuple(parts))

    def moved(self, operation: Operation) -> Network | None:
        """The same with its axes permuted, joined or split."""
        if self.stacked:
            return None
        if operation.primitive == "transpose":
            return replace(self, axes=tuple(self.axes[axis] for axis in operation.params["permutation"]))
        shape, rest, sizes, axes = operation.shape, list("".join(self.axes)), self.sizes, []
        permuted = operation.primitive == "reshape" and operation.params.get("dimensions") is not None
        if permuted or not shape or math.prod(shape) != math.prod(self.shape):
            return None
        for length in shape:
            axis = ""
            while rest and math.prod(sizes[letter] for letter in axis) < length:
                axis += rest.pop(0)
            if math.prod(sizes[letter] for letter in axis) != length:
                return None
            axes.append(axis)
        return replace(self, axes=(*axes[:-1], axes[-1] + "".join(rest)))  # what is left has size 1

    def dot(self, lhs: Any, rhs: Any, params: Mapping[str, Any]) -> Array | None:
        contracting, batch = params["dimension_numbers"]
        side = 0 if lhs is self else 1
        x, w_axes, x_axes = array_of((rhs, lhs)[side]), contracting[side], contracting[1 - side]
        if x is None or batch[0] or self.stacked:
            return None
        free = [axis for axis in range(x.ndim) if axis not in x_axes]
        own = [axis for axis in range(len(self.axes)) if axis not in w_axes]
        given, wanted = ("".join(self.axes[axis] for axis in axes) for axes in (w_axes, own))
        lead, sizes = [x.shape[axis] for axis in free], self.sizes
        x = jnp.transpose(x, (*free, *x_axes)).reshape(*lead, *(sizes[letter] for letter in given))
        out = self._through(x, given, wanted, params["precision"])
        out = out.reshape(*lead, *(self.shape[axis] for axis in own))
        # The result has the free axes of the left side first.
        return jnp.moveaxis(out, tuple(range(len(free))), tuple(range(-len(free), 0))) if side == 0 else out

    def _through(self, x: Array, letters: str, wanted: str, precision: Any) -> Array:
        """Sum over `letters`, the last axes of x, part by part from that end of the network where it costs less."""
        pairs = self.pairs
        if self._cost(letters, wanted, self.labels[::-1]) < self._cost(letters, wanted, self.labels):
            pairs.reverse()
        for place, (part, label) in enumerate(pairs):
            kept = _kept(letters, label, wanted, [later for _, later in pairs[place + 1 :]])
            x, letters = _times(x, letters, part, label, kept, precision), kept
        return jnp.einsum(f"...{letters}->...{wanted}", x)

    def _cost(self, letters: str, wanted: str, labels: Sequence[str]) -> int:
        """Multiplications, for one row of inputs, in an order of the parts."""
        total = 0
        for place, label in enumerate(labels):
            total += self.size("".join({*letters, *label}))
            letters = _kept(letters, label, wanted, labels[place + 1 :])
        return total

    def rows(self, index: Array) -> Array | None:
        """Of each part those that the digits of the index say, multiplied together."""
        if self.stacked or len(self.axes) < 2:
            return None
        digits, rest, sizes, wanted = {}, index, self.sizes, "".join(self.axes[1:])
        for letter in self.axes[0][::-1]:
            rest, digits[letter] = jnp.divmod(rest, sizes[letter])
        pairs = self.pairs
        if not set(self.axes[0]) & set(pairs[0][1]):
            pairs.reverse()
        out, letters = jnp.ones((1,) * index.ndim, self.dtype), ""
        for place, (part, label) in enumerate(pairs):
            left = "".join(letter for letter in label if letter not in digits)
            kept = _kept(letters, left, wanted, [later for _, later in pairs[place + 1 :]])
            if left == label:
                out = _times(out, letters, part, label, kept, None)
            else:
                out = jnp.einsum(f"...{letters},...{left}->...{kept}", out, _picked(part, label, digits))
            letters = kept
        return jnp.einsum(f"...{letters}->...{wanted}", out)

    def conv(self, x: Any, kernel: Any, params: Mapping[str, Any]) -> Array | None:
        """One convolution a part: along its own spatial axes; a dot if it has none."""
        numbers, x = params["dimension_numbers"], array_of(x)
        if kernel is not self or x is None or self.stacked or any(len(axis) != 1 for axis in self.axes):
            return None
        if params["batch_group_count"] != 1:
            return None
        outputs, channel, *space = (self.axes[axis] for axis in numbers.rhs_spec)
        pairs = self.pairs
        if channel not in pairs[0][1]:
            pairs.reverse()
        x = jnp.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
        for place, (part, label) in enumerate(pairs):
            later = {*outputs, *"".join(label for _, label in pairs[place + 1 :])}
            fresh = [letter for letter in label if letter != channel and letter not in space]
            by_channel = channel in later
            if channel not in label or len(fresh) != 1 - by_channel:
                return None
            own = [letter in label for letter in space]
            if params["feature_group_count"] == 1 and not any(own) and not by_channel:
                x = _times(x, channel, part, label, fresh[0], params["precision"])
            else:
                arranged = _arranged(_array(part).astype(x.dtype), label, space, [channel, *fresh])
                x = _conv_step(x, arranged, own, by_channel, fresh != [outputs], params)
            channel = channel if by_channel else fresh[0]
        order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
        return jnp.transpose(x, [order.index(axis) for axis in range(x.ndim)])


def _array(part: Any) -> Array:
    return part.dense() if isinstance(part, Native) else part


def _apart(part: Any, axis: int, length: int) -> Any:
    """A part with an axis of layers in front; with the same for each layer, if it has none (-1)."""
    if axis < 0:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *np.shape(x))), part)
    taken = part.layers(length) if isinstance(part, Native) and axis == 0 else None
    return jnp.moveaxis(_array(part), axis, 0) if taken is None else taken


def _picked(part: Any, label: str, digits: Mapping[str, Array]) -> Array:
    """The elements of a part at the digits of an index, the other axes behind."""
    mine = [letter for letter in label if letter in digits]
    if isinstance(part, Native) and mine == [label[0]]:
        rows = part.rows(digits[label[0]])
        if rows is not None:
            return rows
    array = jnp.moveaxis(_array(part), [label.index(letter) for letter in mine], range(len(mine)))
    return array[tuple(digits[letter] for letter in mine)]


def _times(x: Array, letters: str, part: Any, label: str, kept: str, precision: Any) -> Array:
    """Multiply a part into x, whose last axes are `letters`; `kept` are left."""
    part = part.opened() if isinstance(part, Native) else part
    summed = [letter for letter in label if letter in letters]
    if isinstance(part, Native) and not set(summed) & set(kept):
        axes = ([x.ndim - len(letters) + letters.index(a) for a in summed], [label.index(a) for a in summed])
        params = {"dimension_numbers": (axes, ((), ())), "preferred_element_type": None, "precision": precision}
        out = part.dot(x, part, params)
        if out is not None:
            return out
    return jnp.einsum(f"...{letters},{label}->...{kept}", x, _array(part).astype(x.dtype), precision=precision)


def _kept(letters: str, label: str, wanted: str, later: Sequence[str]) -> str:
    """The letters that are left when a part has been multiplied in."""
    needed = {*wanted, *"".join(later)}
    return "".join(letter for letter in dict.fromkeys(letters + label) if letter in needed)


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
