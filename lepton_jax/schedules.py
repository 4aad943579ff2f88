"""Schedules: step -> value, traced functions of the step. Named in lower case, because they are called as optax's are."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp

from lepton_jax.errors import check_fraction
from lepton_jax.typing import Array, Step


class SparsitySchedule(Protocol):
    """A schedule that says where it ends up."""

    @property
    def target(self) -> float: ...

    def __call__(self, step: Step) -> Array: ...


@dataclasses.dataclass(frozen=True)
class constant:
    """Return `target` at every step.

    Example:
      >>> constant(0.5)(7)
      Array(0.5, dtype=float32)
    """

    target: float

    def __post_init__(self) -> None:
        check_fraction("constant: target", self.target)

    def __call__(self, step: Step) -> Array:
        return jnp.full(jnp.shape(step), self.target, jnp.float32)


@dataclasses.dataclass(frozen=True)
class one_shot:
    """Return 0 before step `begin`, and `target` from there on.

    Example:
      >>> one_shot(0.5, begin=10)(jnp.array([9, 10]))
      Array([0. , 0.5], dtype=float32)
    """

    target: float
    begin: int

    def __post_init__(self) -> None:
        check_fraction("one_shot: target", self.target)

    def __call__(self, step: Step) -> Array:
        return jnp.where(jnp.asarray(step) >= self.begin, jnp.float32(self.target), jnp.float32(0))


@dataclasses.dataclass(frozen=True)
class polynomial:
    """Rise from 0 to `target`, fast first and ever slower.

    ``s(t) = target * (1 - (1 - (t - begin) / (end - begin)) ** power)`` for ``begin <= t <= end``; 0 before, `target` after.

    Args:
      target: the sparsity at the end, in [0, 1).
      begin, end: in steps.
      power: 3 in the paper.

    Raises:
      ValueError: for a target outside [0, 1), or an end that is not after the beginning.

    Example:
      >>> polynomial(0.8, begin=0, end=2, power=1)(jnp.array([0, 1, 2, 3]))
      Array([0. , 0.4, 0.8, 0.8], dtype=float32)

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1, with an initial sparsity of 0.
    """

    target: float
    begin: int
    end: int
    power: float = 3

    def __post_init__(self) -> None:
        check_fraction("polynomial: target", self.target)
        if self.end <= self.begin:
            raise ValueError(f"polynomial: end must come after begin; got begin={self.begin}, end={self.end} (in steps).")

    def __call__(self, step: Step) -> Array:
        done = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / (self.end - self.begin), 0, 1)
        # The end is exact whatever a compiler makes of the division.
        return jnp.where(jnp.asarray(step) >= self.end, self.target, self.target * (1 - (1 - done) ** self.power))


def as_schedule(sparsity: float | SparsitySchedule) -> SparsitySchedule:
    """Read a number as a constant schedule.

    Raises:
      ValueError: for a number outside [0, 1).
      TypeError: for a function that does not say where it ends up.

    Example:
      >>> as_schedule(0.5)
      constant(target=0.5)
    """
    if not callable(sparsity):
        check_fraction("sparsity", sparsity)
        return constant(float(sparsity))
    if not hasattr(sparsity, "target"):
        raise TypeError(
            f"a sparsity schedule must have a `target`, the sparsity it ends at; got {sparsity!r}. "
            "Take one of lepton_jax.schedules, or give yours that attribute."
        )
    return sparsity
