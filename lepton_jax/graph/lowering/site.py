"""One operation that may be done otherwise: its primitive, its parameters and its shapes, and nothing of where it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array
from lepton_jax.graph import _compat
from lepton_jax.graph.lowering.filling import filled
from lepton_jax.graph.trace import Equation


@checked
@dataclass(frozen=True)
class Site:
    """An operation as rules see it. Sites of one primitive, one set of parameters and the same shapes are equal.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> [eqn] = trace(lambda v, x: x @ v, jnp.ones((3, 2)), jnp.ones((5, 3))).equations()
      >>> site = Site.of(eqn)
      >>> site.primitive, site.shapes, site.result
      ('dot_general', ((5, 3), (3, 2)), (5, 2))
    """

    primitive: str
    options: tuple[tuple[str, Any], ...]
    """The parameters, by name."""
    shapes: tuple[tuple[Any, ...], ...]
    dtypes: tuple[str, ...]
    result: tuple[Any, ...]
    result_dtype: str

    @classmethod
    def of(cls, eqn: Equation) -> Site:
        """The site that an operation of one result is."""
        [out] = eqn.out_avals
        avals = eqn.in_avals
        return cls(
            eqn.primitive,
            tuple(sorted(eqn.params.items())),
            tuple(tuple(aval.shape) for aval in avals),
            tuple(str(aval.dtype) for aval in avals),
            tuple(out.shape),
            str(out.dtype),
        )

    @cached_property
    def params(self) -> dict[str, Any]:
        """The parameters."""
        return dict(self.options)

    @cached_property
    def key(self) -> str:
        """The site as text, for files."""
        options = ", ".join(f"{name}={value}" for name, value in self.options)
        operands = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in zip(self.dtypes, self.shapes))
        return f"{self.primitive}({operands}; {options})"

    @cached_property
    def is_plain(self) -> bool:
        """Whether its arrays are of real numbers, have elements, and are placed nowhere by hand."""
        kinds = all(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) for dtype in self.dtypes)
        full = all(_compat.concrete(size) > 0 for shape in (*self.shapes, self.result) for size in shape)
        return kinds and full and self.params.get("out_sharding") is None

    @cached_property
    def convolution(self) -> Convolution | None:
        """Its parameters and shapes by their meaning, if it is a convolution whose lengths but the batch's are known."""
        if self.primitive != "conv_general_dilated":
            return None
        numbers = self.params["dimension_numbers"]
        (x, kernel), out = self.shapes, self.result
        rest = [*(n for i, n in enumerate(x) if i != numbers.lhs_spec[0]), *kernel]
        return Convolution(self, numbers, x, kernel, out) if all(isinstance(n, int) for n in rest) else None

    @cached_property
    def sums(self) -> np.dtype:
        """The dtype that sums of products are kept in: float32 for narrower floats."""
        dtype = jnp.dtype(self.result_dtype)
        return jnp.dtype(jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype

    @cached_property
    def elements(self) -> int:
        """How many its largest operand or result has."""
        return max(math.prod(map(_compat.concrete, shape)) for shape in (*self.shapes, self.result))


class Meeting(NamedTuple):
    """Along one axis of space, where a tap of the kernel meets the image: `times` times, in an arithmetic sequence.

    Result ``out + q * out_step`` gets the tap's product with input ``at + q * step``, for ``0 <= q < times``.
    """

    out: int
    out_step: int
    at: int
    step: int
    times: int


class Convolution:
    """``out[o] = sum over taps t, features c: x[o * stride + t * dilation - low, c] kernel[t, c]``, axis by axis.

    Attributes:
      image, kernel, out: lengths in space of the input, the kernel and the result.
      channels, features: of the input and the result.
      groups, batch_groups: of features, of the batch.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> conv = lambda k, x: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> [eqn] = trace(conv, jnp.ones((3, 3, 4, 8)), jnp.ones((1, 2, 2, 4))).equations()
      >>> site = Site.of(eqn).convolution
      >>> site.image, site.kernel, site.out, site.channels, site.features, site.meetings((0, 1))[0]
      ((2, 2), (3, 3), (2, 2), 4, 8, Meeting(out=1, out_step=1, at=0, step=1, times=1))
    """

    def __init__(self, site: Site, numbers: Any, x: Sequence[int], kernel: Sequence[int], out: Sequence[int]):
        params = site.params
        self.site, self.x_axes, self.kernel_axes, self.out_axes = site, numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        self.space = self.x_axes[2:]
        self.image = tuple(x[i] for i in self.space)
        self.kernel = tuple(kernel[i] for i in self.kernel_axes[2:])
        self.out = tuple(out[i] for i in self.out_axes[2:])
        self.batch, self.channels, self.features = x[self.x_axes[0]], x[self.x_axes[1]], out[self.out_axes[1]]
        self.groups, self.batch_groups = params["feature_group_count"], params["batch_group_count"]
        self.strides, self.padding = params["window_strides"], params["padding"]
        self.holes, self.dilations = params["lhs_dilation"], params["rhs_dilation"]

    @property
    def ungrouped(self) -> bool:
        """Whether every result sums over all channels."""
        return self.groups == self.batch_groups == 1

    @property
    def taps(self) -> int:
        """The kernel's elements in space."""
        return math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Products that the result is made of; those with zeros between the inputs are not counted."""
        each = self.taps * self.channels // self.groups
        batch = _compat.concrete(self.batch) // self.batch_groups
        return batch * math.prod(self.out) * self.features * each // math.prod(self.holes)

    def meetings(self, tap: Sequence[int]) -> list[Meeting] | None:
        """Where a tap meets the image, along every axis of space; None if it never does."""
        found = [self._meeting(axis, t) for axis, t in enumerate(tap)]
        return None if any(one is None for one in found) else [one for one in found if one is not None]

    def _meeting(self, axis: int, tap: int) -> Meeting | None:
        stride, hole, low = self.strides[axis], self.holes[axis], self.padding[axis][0]
        for out in range(self.out[axis]):
            at, rest = divmod(out * stride + tap * self.dilations[axis] - low, hole)
            if at >= self.image[axis]:
                return None
            if rest == 0 and at >= 0:
                common = math.gcd(stride, hole)
                out_step, step = hole // common, stride // common
                count = 1 + min((self.out[axis] - 1 - out) // out_step, (self.image[axis] - 1 - at) // step)
                return Meeting(out, out_step, at, step, count)
        return None

    def padded(self, x: Array) -> Array:
        """The input with what is filled in around and between its elements, kept as an array of its own.

        Without the barrier XLA would take the filling back into a convolution.
        """
        config = [(0, 0, 0)] * x.ndim
        for axis, (low, high), hole in zip(self.space, self.padding, self.holes):
            config[axis] = (low, high, hole - 1)
        if all(one == (0, 0, 0) for one in config):
            return x
        return jax.lax.optimization_barrier(filled(x, jnp.zeros((), x.dtype), config))

    def under(self, padded: Array, tap: Sequence[int]) -> Array:
        """What of the padded input a tap meets, for all results."""
        starts, limits, steps = [0] * padded.ndim, list(padded.shape), [1] * padded.ndim
        for axis, t, dilation, n, stride in zip(self.space, tap, self.dilations, self.out, self.strides):
            starts[axis], limits[axis], steps[axis] = t * dilation, t * dilation + (n - 1) * stride + 1, stride
        return jax.lax.slice(padded, starts, limits, steps)

    def at_tap(self, kernel: Array, tap: Sequence[int]) -> Array:
        """The kernel's matrix at a tap: two axes, in the order in which it has them."""
        starts, limits = [0] * kernel.ndim, list(kernel.shape)
        for axis, t in zip(self.kernel_axes[2:], tap):
            starts[axis], limits[axis] = t, t + 1
        return jax.lax.squeeze(jax.lax.slice(kernel, starts, limits), self.kernel_axes[2:])

    @property
    def inputs_first(self) -> bool:
        """Whether in the kernel's matrix at a tap the inputs' axis comes before the outputs'."""
        return self.kernel_axes[1] < self.kernel_axes[0]

    def dot(self, x: Array, kernel: Array, numbers: Any) -> Array:
        """A `dot_general` with the convolution's precision, in the dtype of its sums."""
        precision = self.site.params["precision"]
        return jax.lax.dot_general(x, kernel, numbers, precision=precision, preferred_element_type=self.site.sums)

    def ordered(self, out: Array, axes: Sequence[int]) -> Array:
        """A result whose axes are (in the result's numbering) `axes`, in the result's own order and dtype."""
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        out = out if order == list(range(len(axes))) else jax.lax.transpose(out, order)
        return out.astype(self.site.result_dtype)

    def like_input(self, features_last: bool = False) -> list[int]:
        """The result's axes in the order in which the input has them; or its features after all others."""
        of = dict(zip(self.x_axes, self.out_axes))
        axes = [of[i] for i in sorted(self.x_axes) if not features_last or i != self.x_axes[1]]
        return [*axes, self.out_axes[1]] if features_last else axes
