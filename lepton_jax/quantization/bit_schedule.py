"""Quantization that begins late, or goes from more bits to fewer, in one compiled program."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import State, Transform, named, wrapper
from lepton_jax.core.transform.wrapper import Moved, Seen
from lepton_jax.core.typing import Array, PyTree, Select, Step
from lepton_jax.formats import Uniform
from lepton_jax.formats.layout import ChannelAxis
from lepton_jax.formats.ranges import Calibration
from lepton_jax.formats.ranges.base import check_calibration
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.rounding import calibrated, fake
from lepton_jax.quantization.lsq import LearnedWeight
from lepton_jax.quantization.weights import on_weights


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class BitSchedule:
    """How many bits there are from which step on; before the first of these steps there is no rounding.

    Args:
      begin: rising steps.
      bits: as many, each 2 to 8 (see `Uniform`).

    Raises:
      ValueError: if the steps do not rise, or the lengths differ.

    Example:
      >>> schedule = BitSchedule(begin=(10, 20, 30), bits=(8, 4, 3))
      >>> schedule(jnp.array([9, 10, 29, 99])).tolist()
      [0, 1, 2, 3]
    """

    begin: tuple[int, ...]
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        with collect("BitSchedule") as problems:
            if not self.begin or len(self.begin) != len(self.bits):
                problems.append(f"begin and bits: one step and one width for each stage; got {self.begin} and {self.bits}")
            if list(self.begin) != sorted(set(self.begin)):
                problems.append(f"begin: the steps must rise; got {self.begin}")
        for step in self.begin:
            check_whole("BitSchedule: begin", step, 0)
        for bits in self.bits:
            Uniform(bits)

    def __call__(self, step: Step) -> Array:
        """Return the number of the stage at a step, int32: 0 before the first."""
        return jnp.searchsorted(jnp.asarray(self.begin), jnp.asarray(step), side="right").astype(jnp.int32)


class BitScheduleState(NamedTuple):
    """The number of the stage that the view is in, int32; 0: no rounding yet."""

    stage: Array


@checked
@named
def scheduled_quant(
    schedule: BitSchedule,
    *,
    symmetric: bool = True,
    channel_axis: ChannelAxis = "out",
    calibration: Calibration | None = None,
    select: Select = paths.matrices,
) -> Transform:
    """Show weights at a number of bits that depends on the step; a straight-through uniform quantizer else, as `fake_quant`.

    The view of step s has the bits of ``schedule(s)``, chosen by a `jax.lax.switch`: a run is compiled once. `pack` has the
    last bits at any time, so what is packed is what was seen from the last stage on.

    Args:
      schedule: when which bits.
      symmetric: of the formats.
      channel_axis: of the formats; None: one scale a leaf.
      calibration: finds the range; by default that of all weights.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for a selector that matches nothing, or an axis that a leaf lacks.

    Example:
      >>> transform = scheduled_quant(BitSchedule(begin=(1, 2), bits=(8, 2)))
      >>> params, state = transform.init({"kernel": jnp.array([[127.5], [3.25]])})
      >>> for step in range(3):
      ...     print(transform.view(params, state)["kernel"].tolist())
      ...     params, state = transform.update(params, state, params, step)
      [[127.5], [3.25]]
      [[127.0], [3.0]]
      [[85.0], [0.0]]

    Source: Jacob et al. 2018, section 3.1 (delayed start: "quantization is disabled at the start of training"); fewer bits step
    by step: Zhuang et al. 2018, "Towards effective low-bitwidth convolutional neural networks", section 3.2.
    """
    check_calibration("scheduled_quant", calibration)
    last = Uniform(schedule.bits[-1], symmetric, channel_axis)

    def rounded(fmt: Uniform, w: Array) -> Array:
        return fake(w, fmt, *calibrated(w, fmt, calibration)).astype(w.dtype)

    def seen(w: Array, fmt: Uniform, state: BitScheduleState, *_: Any) -> Array:
        each = (dataclasses.replace(fmt, bits=bits) for bits in schedule.bits)
        stages: list[Callable[[Array], Array]] = [jnp.copy, *(partial(rounded, one) for one in each)]
        return straight_through(w, jax.lax.switch(state.stage, stages, jax.lax.stop_gradient(w)))

    def coded(w: Array, fmt: Uniform, *_: Any) -> QArray:
        return quantize(w, fmt, calibration)

    def first() -> BitScheduleState:
        return BitScheduleState(schedule(0))

    def update(params: PyTree, state: BitScheduleState, grads: PyTree, step: Step) -> tuple[PyTree, BitScheduleState]:
        return params, BitScheduleState(schedule(jnp.asarray(step) + 1))

    return on_weights("scheduled_quant", last, select, seen=seen, coded=coded, state=first, update=update)


class DelayedState(NamedTuple):
    """State of `delayed`: the transform's own, and whether its view is shown."""

    inner: State
    on: Array


@checked
@named
def delayed(transform: Transform, begin: int) -> Transform:
    """Show the parameters as they are before step `begin`, and a transform's view from then on; traced, compiled once.

    `pack` is the transform's at any time.

    Args:
      transform: a quantizer of weights: one that keeps the tree, or `lsq`, whose weights are shown as they are.
      begin: the first step that has the view.

    Raises:
      ValueError: for a step that is no whole number, or, when viewed, a transform that took a weight's place.

    Example:
      >>> from lepton_jax import fake_quant
      >>> transform = delayed(fake_quant(2), begin=1)
      >>> params, state = transform.init({"kernel": jnp.array([[1.5], [0.25]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[1.5], [0.25]]
      >>> params, state = transform.update(params, state, params, 0)
      >>> transform.view(params, state)["kernel"].tolist()
      [[1.0], [0.0]]

    Source: Jacob et al. 2018, section 3.1.
    """
    check_whole("delayed: begin", begin, 0)

    def init(params: PyTree) -> tuple[PyTree, DelayedState]:
        params, inner = transform.init(params)
        return params, DelayedState(inner, jnp.asarray(begin <= 0, bool))

    def see(part: Seen, params: PyTree, state: DelayedState) -> PyTree:
        if part == "pack":
            return transform.pack(params, state.inner)
        plain = jax.tree.map(lambda node: node.value if _is_learned(node) else node, params, is_leaf=_is_learned)
        seen = transform.view(params, state.inner)
        if not _alike(plain, seen):
            raise ValueError(
                "delayed: takes a transform that keeps each weight, as fake_quant, dorefa and lsq do; this one put other "
                "parameters in weights' places, so there is nothing to show before it begins."
            )
        return jax.tree.map(lambda w, late: jnp.where(state.on, late, w.astype(late.dtype)), plain, seen)

    def move(part: Moved, params: PyTree, state: DelayedState, grads: PyTree, step: Step) -> tuple[PyTree, DelayedState]:
        params, inner = getattr(transform, part)(params, state.inner, grads, step)
        on = state.on if part == "frozen_update" else jnp.asarray(jnp.asarray(step) + 1 >= begin, bool)
        return params, DelayedState(inner, on)

    return wrapper(init, see, move)


def _alike(one: PyTree, other: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(one), jax.tree.structure(other)]
    return bool(structures[0] == structures[1])


def _is_learned(node: object) -> bool:
    return isinstance(node, LearnedWeight)
