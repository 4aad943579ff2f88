"""Schedules: step -> value, traced functions of the step. Named in lower case, because they are called as optax's are.

Steps are whole numbers, Python's or integer arrays of any shape; values are float32 of that shape. From `end` on, a value is
the target exactly, whatever a compiler makes of the division. A target may be traced, for sweeps under `jax.vmap`; it is then
not checked.

How often masks follow a schedule is not its business: that is `interval` of `lepton_jax.prune`. For a value that is no
sparsity, such as the drop fraction of SET and RigL, take `optax.cosine_decay_schedule`: it is the
``a / 2 * (1 + cos(pi * t / T_end))`` of Evci et al. 2020 (after Dettmers and Zettlemoyer 2019).
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import check_fraction, check_whole, is_traced
from lepton_jax.core.typing import Array, Step


class SparsitySchedule(Protocol):
    """A schedule that says where it ends up."""

    @property
    def target(self) -> float | Array: ...

    def __call__(self, step: Step) -> Array: ...


@checked
@dataclasses.dataclass(frozen=True)
class constant:
    """Return `target` at every step.

    Example:
      >>> constant(0.5)(7)
      Array(0.5, dtype=float32)
    """

    target: float | Array

    def __post_init__(self) -> None:
        check_fraction("constant: target", self.target)

    def __call__(self, step: Step) -> Array:
        return jnp.full(jnp.shape(step), self.target, jnp.float32)


@checked
@dataclasses.dataclass(frozen=True)
class one_shot:
    """Return 0 before step `begin`, and `target` from there on.

    Example:
      >>> one_shot(0.5, begin=10)(jnp.array([9, 10]))
      Array([0. , 0.5], dtype=float32)
    """

    target: float | Array
    begin: int

    def __post_init__(self) -> None:
        check_fraction("one_shot: target", self.target)
        _check_step("one_shot: begin", self.begin)

    def __call__(self, step: Step) -> Array:
        return jnp.where(jnp.asarray(step) >= self.begin, _float32(self.target), jnp.float32(0))


@checked
@dataclasses.dataclass(frozen=True)
class polynomial:
    """Rise from 0 to `target`, fast first and ever slower.

    ``s(t) = target * (1 - (1 - (t - begin) / (end - begin)) ** power)`` for ``begin <= t <= end``; 0 before, `target` after.

    Args:
      target: the sparsity at the end, in [0, 1).
      begin, end: in steps.
      power: above 0; 3 in the paper.

    Raises:
      ValueError: for a target outside [0, 1), a power that is not above 0, or an end that is not after the beginning.

    Example:
      >>> polynomial(0.8, begin=0, end=2, power=1)(jnp.array([0, 1, 2, 3]))
      Array([0. , 0.4, 0.8, 0.8], dtype=float32)

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1, with an initial sparsity of 0.
    """

    target: float | Array
    begin: int
    end: int
    power: float = 3

    def __post_init__(self) -> None:
        check_fraction("polynomial: target", self.target)
        _check_span("polynomial", self.begin, self.end)
        if not is_traced(self.power) and not self.power > 0:
            raise ValueError(f"polynomial: power must be above 0; got {self.power}. 3 is the paper's, 1 rises evenly.")

    def __call__(self, step: Step) -> Array:
        done = _done(step, self.begin, self.end)
        return _arrive(step, self.end, self.target, self.target * (1 - (1 - done) ** self.power))


@checked
@dataclasses.dataclass(frozen=True)
class cosine:
    """Rise from 0 to `target` slowly at both ends.

    ``s(t) = target * (1 - cos(pi * (t - begin) / (end - begin))) / 2`` for ``begin <= t <= end``; 0 before, `target` after.

    Args:
      target: the sparsity at the end, in [0, 1).
      begin, end: in steps.

    Raises:
      ValueError: for a target outside [0, 1), or an end that is not after the beginning.

    Example:
      >>> [round(float(value), 4) for value in cosine(0.8, begin=0, end=2)(jnp.array([0, 1, 2, 3]))]
      [0.0, 0.4, 0.8, 0.8]

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, one period of it, as a sparsity in place of a learning rate.
    """

    target: float | Array
    begin: int
    end: int

    def __post_init__(self) -> None:
        check_fraction("cosine: target", self.target)
        _check_span("cosine", self.begin, self.end)

    def __call__(self, step: Step) -> Array:
        done = _done(step, self.begin, self.end)
        # sin^2 of the half angle: 1 - cos would cancel where the rise begins.
        return _arrive(step, self.end, self.target, self.target * jnp.sin(jnp.pi / 2 * done) ** 2)


@checked
@dataclasses.dataclass(frozen=True)
class periodic:
    """Alternate between `target` (compressed phases) and 0 (dense phases), and end at `target`.

    ``s(t) = target`` where ``t >= end``, or ``t >= begin`` and ``(t - begin) mod (compressed + dense) < compressed``; else 0.

    With `lepton_jax.prune`, phases should begin at multiples of its `interval`, or masks follow late. Weights return in a dense
    phase from 0 (gradient="masked") or from the masters that lived on (gradient="straight_through").

    Args:
      target: the sparsity of the compressed phases and at the end, in [0, 1).
      begin: the first step of the first compressed phase; what comes before is the dense warm-up.
      end: from here on compressed for good.
      compressed, dense: lengths of the phases, in steps.

    Raises:
      ValueError: for a target outside [0, 1), an end that is not after the beginning, or a phase without steps.

    Example:
      >>> periodic(0.5, begin=1, end=6, compressed=2, dense=1)(jnp.arange(8)).tolist()
      [0.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5]

    Source: Peste et al. 2021, "AC/DC: alternating compressed/decompressed training", algorithm 1.
    """

    target: float | Array
    begin: int
    end: int
    compressed: int
    dense: int

    def __post_init__(self) -> None:
        check_fraction("periodic: target", self.target)
        _check_span("periodic", self.begin, self.end)
        check_whole("periodic: compressed", self.compressed, 1)
        check_whole("periodic: dense", self.dense, 1)

    def __call__(self, step: Step) -> Array:
        step = jnp.asarray(step)
        since = jnp.clip(step, self.begin, self.end) - self.begin
        compressed = since % (self.compressed + self.dense) < self.compressed
        on = (step >= self.end) | ((step >= self.begin) & compressed)
        return jnp.where(on, _float32(self.target), jnp.float32(0))


@checked_but("sparsity")
def as_schedule(sparsity: float | Array | SparsitySchedule) -> SparsitySchedule:
    """Read a number as a constant schedule; a traced one too.

    Raises:
      ValueError: for a number outside [0, 1).
      TypeError: for a function that does not say where it ends up.

    Example:
      >>> as_schedule(0.5)
      constant(target=0.5)
    """
    if not callable(sparsity):
        check_fraction("sparsity", sparsity)
        return constant(sparsity if is_traced(sparsity) else float(sparsity))
    if not hasattr(sparsity, "target"):
        raise TypeError(
            f"a sparsity schedule must have a `target`, the sparsity it ends at; got {sparsity!r}. "
            "Take one of lepton_jax.core.schedules, or give yours that attribute."
        )
    return sparsity


def _check_step(name: str, step: int) -> None:
    if not isinstance(step, jax.Array):  # one that may be traced
        check_whole(name, step, 0)


def _check_span(name: str, begin: int, end: int) -> None:
    """Raise unless both are steps, and the end comes after the beginning."""
    _check_step(f"{name}: begin", begin)
    _check_step(f"{name}: end", end)
    if not is_traced(begin) and not is_traced(end) and end <= begin:
        raise ValueError(f"{name}: end must come after begin; got begin={begin}, end={end} (in steps).")


def _float32(value: float | Array) -> Array:
    return jnp.asarray(value, jnp.float32)


def _done(step: Step, begin: int, end: int) -> Array:
    """Return how much of the way from begin to end is done, from 0 to 1; differences of steps are exact up to 2**24."""
    return _float32(jnp.clip(jnp.asarray(step), begin, end) - begin) / _float32(end - begin)


def _arrive(step: Step, end: int, target: float | Array, value: Array) -> Array:
    """Return the target from `end` on: exact whatever a compiler makes of the division."""
    return jnp.where(jnp.asarray(step) >= end, _float32(target), value)
