"""Schedules against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.schedules import as_schedule, constant, one_shot, polynomial


@pytest.mark.parametrize(("target", "begin", "end", "power"), [(0.9, 3, 17, 3), (0.5, 0, 10, 1), (0.985, 5, 6, 2.5)])
def test_polynomial(target: float, begin: int, end: int, power: float) -> None:
    steps = np.arange(25)
    done = np.clip((steps - begin) / (end - begin), 0, 1)
    expected = target * (1 - (1 - done) ** power)
    schedule = polynomial(target, begin=begin, end=end, power=power)
    values = jax.jit(schedule)(jnp.asarray(steps))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(schedule(jnp.asarray(steps)), expected, rtol=1e-5, atol=1e-6)
    assert (np.asarray(values)[steps <= begin] == 0).all()
    assert (np.asarray(values)[steps >= end] == np.float32(target)).all()
    assert (np.diff(values) >= 0).all()


def test_one_shot_and_constant() -> None:
    assert [float(one_shot(0.5, begin=10)(step)) for step in (0, 9, 10, 11)] == [0.0, 0.0, 0.5, 0.5]
    assert float(constant(0.25)(0)) == 0.25
    for schedule in (constant(0.25), one_shot(0.25, begin=1), polynomial(0.25, begin=0, end=1)):
        assert schedule(3).dtype == jnp.float32
        assert schedule(3).shape == ()
        assert not schedule(3).weak_type
        assert schedule(jnp.arange(3)).shape == (3,)
        assert schedule.target == 0.25


def test_as_schedule() -> None:
    schedule = one_shot(0.5, begin=2)
    assert as_schedule(schedule) is schedule
    assert as_schedule(0) == constant(0.0)


def test_bad_settings() -> None:
    for make in (lambda t: constant(t), lambda t: one_shot(t, begin=0), lambda t: polynomial(t, begin=0, end=1)):
        for target in (1.0, 1.9, -0.1, float("nan")):
            with pytest.raises(ValueError, match=r"target must be in \[0, 1\), the fraction of weights removed; got"):
                make(target)
    with pytest.raises(ValueError, match="end must come after begin; got begin=5, end=5"):
        polynomial(0.5, begin=5, end=5)


def test_a_schedule_must_say_where_it_ends() -> None:
    with pytest.raises(TypeError, match="must have a `target`"):
        as_schedule(lambda step: jnp.float32(0.5))
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\).*got 90"):
        as_schedule(90)
