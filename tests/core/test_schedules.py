"""Schedules against float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax.core import schedules
from lepton_jax.core.schedules import as_schedule, constant, cosine, one_shot, periodic, polynomial


def _done(steps: np.ndarray, begin: int, end: int) -> np.ndarray:
    return np.clip((steps.astype(np.float64) - begin) / (end - begin), 0, 1)


def _periodic(steps: np.ndarray, target: float, begin: int, end: int, compressed: int, dense: int) -> np.ndarray:
    """Phase by phase, written out."""
    on = np.zeros(steps.max() + 1, bool)
    at = begin
    while at < end:
        on[at : at + compressed] = True
        at += compressed + dense
    on[end:] = True
    return np.where(on[steps], target, 0.0)


CASES: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "constant": (constant(0.3), lambda t: np.full(t.shape, 0.3)),
    "one_shot": (one_shot(0.7, begin=9), lambda t: np.where(t >= 9, 0.7, 0.0)),
    "cubic": (polynomial(0.9, begin=3, end=17), lambda t: 0.9 * (1 - (1 - _done(t, 3, 17)) ** 3)),
    "linear": (polynomial(0.5, begin=0, end=10, power=1), lambda t: 0.5 * _done(t, 0, 10)),
    "one step": (polynomial(0.985, begin=5, end=6, power=2.5), lambda t: np.where(t >= 6, 0.985, 0.0)),
    "long": (polynomial(0.95, begin=1000, end=90_000), lambda t: 0.95 * (1 - (1 - _done(t, 1000, 90_000)) ** 3)),
    "cosine": (cosine(0.8, begin=4, end=21), lambda t: 0.8 * (1 - np.cos(np.pi * _done(t, 4, 21))) / 2),
    "long cosine": (cosine(0.95, begin=0, end=77_777), lambda t: 0.95 * (1 - np.cos(np.pi * _done(t, 0, 77_777))) / 2),
    "periodic": (periodic(0.6, begin=4, end=20, compressed=3, dense=2), lambda t: _periodic(t, 0.6, 4, 20, 3, 2)),
    "ends in a dense phase": (periodic(0.6, begin=0, end=9, compressed=2, dense=5), lambda t: _periodic(t, 0.6, 0, 9, 2, 5)),
}


def _steps(end: int) -> np.ndarray:
    """The first, the last and 40 random steps, up to past the end."""
    drawn = np.random.default_rng(end).integers(0, end + end // 2 + 3, size=40)
    return np.concatenate([np.arange(25), drawn, [end - 1, end, end + 1]]).astype(np.int32)


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_is_its_formula_in_float64(name: str) -> None:
    schedule, reference = CASES[name]
    end = getattr(schedule, "end", 20)
    steps = _steps(end)
    expected = reference(steps)
    for values in (
        schedule(jnp.asarray(steps)),
        jax.jit(schedule)(steps),
        jax.vmap(schedule)(jnp.asarray(steps)),
        jnp.stack([schedule(int(step)) for step in steps[:8]]),
    ):
        assert values.dtype == jnp.float32
        assert not values.weak_type
        np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-5, atol=1e-6)
        # From the end on exact; and exactly 0 where nothing has begun.
        arrived = (steps >= end)[: len(values)]
        assert (np.asarray(values)[arrived] == np.float32(schedule.target)).all()
        assert (np.asarray(values)[expected[: len(values)] == 0] == 0).all()
        assert (np.asarray(values) <= np.float32(schedule.target)).all()


def test_rising_schedules_never_fall() -> None:
    for name in ("cubic", "linear", "cosine", "long", "long cosine"):
        schedule, _ = CASES[name]
        values = np.asarray(jax.jit(schedule)(np.arange(0, schedule.end + 100, 1 + schedule.end // 2000)))
        assert (np.diff(values) >= 0).all(), name


def test_shapes_and_targets() -> None:
    for schedule, _ in CASES.values():
        assert schedule(3).shape == ()
        assert schedule(jnp.zeros((2, 3), jnp.int32)).shape == (2, 3)
        assert schedule(np.int64(3)) == schedule(jnp.uint32(3)) == schedule(3)


SWEEPS: dict[str, Callable[[Any], Any]] = {
    "constant": constant,
    "number": as_schedule,
    "one_shot": lambda target: one_shot(target, begin=2),
    "polynomial": lambda target: polynomial(target, begin=1, end=7),
    "cosine": lambda target: cosine(target, begin=1, end=7),
    "periodic": lambda target: periodic(target, begin=1, end=7, compressed=2, dense=1),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_over_targets_is_separate_schedules(name: str) -> None:
    targets, steps = jnp.array([0.0, 0.5, 0.985]), jnp.arange(10)
    swept = jax.jit(jax.vmap(lambda target: SWEEPS[name](target)(steps)))(targets)
    assert swept.dtype == jnp.float32
    for row, target in zip(swept, targets):
        np.testing.assert_allclose(row, SWEEPS[name](float(target))(steps), rtol=1e-6, atol=1e-7)
        assert (row[7:] == target).all()


def test_begin_and_end_may_be_swept() -> None:
    ends = jnp.array([3, 6])
    swept = jax.vmap(lambda end: polynomial(0.5, begin=1, end=end, power=1)(jnp.arange(8)))(ends)
    for row, end in zip(swept, (3, 6)):
        np.testing.assert_allclose(row, polynomial(0.5, begin=1, end=end, power=1)(jnp.arange(8)), rtol=1e-6)


def test_drop_fractions_are_optax_s() -> None:
    """What the module says of `optax.cosine_decay_schedule`."""
    steps = np.arange(0, 130, 7)
    expected = 0.3 / 2 * (1 + np.cos(np.pi * np.minimum(steps, 100) / 100))
    np.testing.assert_allclose(optax.cosine_decay_schedule(0.3, 100)(jnp.asarray(steps)), expected, rtol=1e-5, atol=1e-7)


def test_as_schedule() -> None:
    schedule = one_shot(0.5, begin=2)
    assert as_schedule(schedule) is schedule
    assert as_schedule(0) == constant(0.0)
    assert isinstance(as_schedule(jnp.float32(0.5)).target, float)


@pytest.mark.parametrize("name", [name for name in SWEEPS if name != "number"])
@pytest.mark.parametrize("target", [1.0, 1.9, -0.1, float("nan")])
def test_targets_outside(name: str, target: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: target must be in \[0, 1\), the fraction of weights removed; got"):
        SWEEPS[name](target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("polynomial", 0.5, 5, 5), "polynomial: end must come after begin; got begin=5, end=5"),
        (("cosine", 0.5, 5, 4), "cosine: end must come after begin; got begin=5, end=4"),
        (("periodic", 0.5, 5, 4, 1, 1), "periodic: end must come after begin; got begin=5, end=4"),
        (("periodic", 0.5, 0, 4, 0, 1), "periodic: compressed must be a whole number from 1 up; got 0"),
        (("periodic", 0.5, 0, 4, 1, 0), "periodic: dense must be a whole number from 1 up; got 0"),
        (("polynomial", 0.5, 0, 4, 0), "polynomial: power must be above 0; got 0"),
        (("polynomial", 0.5, 0, 0.5), "polynomial: end must be a whole number from 0 up; got 0.5"),
        (("one_shot", 0.5, -1), "one_shot: begin must be a whole number from 0 up; got -1"),
    ],
    ids=str,
)
def test_bad_settings(settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(schedules, settings[0])(*settings[1:])


def test_a_schedule_must_say_where_it_ends() -> None:
    with pytest.raises(TypeError, match="must have a `target`"):
        as_schedule(lambda step: jnp.float32(0.5))
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\).*got 90"):
        as_schedule(90)
