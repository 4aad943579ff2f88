"""Criteria: scores against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.pruning import Structure, Unstructured
from lepton_jax.pruning.criteria import Criterion, Magnitude


def test_magnitude() -> None:
    weight = jnp.array([[-3.0, 0.5], [-0.0, 2.0]])
    scores = Magnitude().scores(weight, Magnitude().init(weight))
    assert scores.dtype == weight.dtype
    assert scores.tolist() == [[3.0, 0.5], [0.0, 2.0]]
    assert not np.signbit(np.asarray(scores)).any()


def test_magnitude_gathers_nothing() -> None:
    weight = jnp.ones(3)
    assert Magnitude().accumulate(Magnitude().init(weight), weight, weight) == Magnitude().init(weight) == ()


def test_settings_are_values() -> None:
    assert Magnitude() == Magnitude()
    assert hash(Unstructured()) == hash(Unstructured())
    with pytest.raises(TypeError, match="unexpected keyword argument 'powr'"):
        Magnitude(powr=2)


def test_an_unfinished_criterion_or_structure_says_so() -> None:
    class Nothing(Criterion, Structure):
        pass

    with pytest.raises(TypeError, match="Nothing defines no scores"):
        Nothing().scores(jnp.ones(2), ())
    with pytest.raises(TypeError, match="Nothing defines no units"):
        Nothing().reduce(jnp.ones(2))
    with pytest.raises(TypeError, match="Nothing defines no units"):
        Nothing().expand(jnp.ones(2, bool), (2,))


def test_unstructured_units_are_the_weights() -> None:
    scores = jnp.arange(6.0).reshape(2, 3)
    assert Unstructured().reduce(scores).tolist() == scores.tolist()
    mask = scores > 2
    assert Unstructured().expand(mask, (2, 3)).tolist() == mask.tolist()
