"""Quantization that begins late or takes fewer bits step by step; and stochastic rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import chain, fake_quant, low_rank, pack, prune, unpack
from lepton_jax.quantization import BitSchedule, Uniform, delayed, lsq, quantize, scheduled_quant, stochastic_quant


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shown(transform, params, steps):
    """The view at each step, with one traced function; and how often it was traced."""
    params, state = transform.init(params)
    traces, views = [], []

    @jax.jit
    def step(params, state, number):
        traces.append(number)
        seen, slopes = transform.view(params, state), jax.grad(lambda p: jnp.sum(transform.view(p, state)["k"]))(params)
        params, state = transform.update(params, state, slopes, number)
        return params, state, seen["k"], slopes

    for number in range(steps):
        params, state, seen, slopes = step(params, state, jnp.int32(number))
        views.append(np.asarray(seen))
    assert len(traces) == 1
    return views, (params, state), slopes


def test_eight_then_four_then_three_bits():
    w = draw(0, 6, 5)
    schedule = BitSchedule(begin=(2, 3, 5), bits=(8, 4, 3))
    for options in ({}, {"symmetric": False, "channel_axis": -1}):
        transform = scheduled_quant(schedule, **options)
        views, (params, state), slopes = shown(transform, {"k": w}, 7)
        for number, view in enumerate(views):
            bits = [None, None, 8, 4, 4, 3, 3][number]
            expected = w if bits is None else quantize(w, Uniform(bits, **{"channel_axis": -1, **options})).unpack()
            assert view.tobytes() == np.asarray(expected).tobytes(), number
        assert (slopes["k"] == 1).all()
        leaf = pack(transform, params, state)["k"]
        assert leaf.format.bits == 3
        assert np.asarray(unpack(leaf)).tobytes() == views[-1].tobytes()


@pytest.mark.parametrize("make", [lambda: fake_quant(3), lambda: lsq(3), lambda: stochastic_quant(3, jax.random.key(0))])
def test_a_delayed_view_is_float_before_its_step(make):
    w = draw(1, 6, 5)
    views, (params, state), _ = shown(delayed(make(), 2), {"k": w}, 4)
    for number, view in enumerate(views):
        assert (view.tobytes() == np.asarray(w).tobytes()) == (number < 2), number
    packed = pack(delayed(make(), 2), params, state)["k"]
    assert np.asarray(unpack(packed)).tobytes() == np.asarray(delayed(make(), 2).view(params, state)["k"]).tobytes()
    views, _, _ = shown(delayed(make(), 0), {"k": w}, 1)
    assert views[0].tobytes() != np.asarray(w).tobytes()


def test_a_delayed_step_gets_no_gradient_before():
    for begin, moves in ((5, False), (0, True)):
        _, _, slopes = shown(delayed(lsq(2), begin), {"k": draw(2, 6, 5)}, 1)
        assert bool(jnp.any(slopes["k"].step != 0)) == moves


def test_pruned_weights_stay_zero_at_all_bits():
    transform = chain(prune(0.5), scheduled_quant(BitSchedule(begin=(1, 2), bits=(4, 2))))
    views, (_, state), _ = shown(transform, {"k": draw(3, 6, 5)}, 3)
    assert all(not view[~np.asarray(state[0].masks["k"])].any() for view in views)


def test_misuse():
    with pytest.raises(ValueError, match=r"(?s)one step and one width.*the steps must rise"):
        BitSchedule(begin=(5, 2), bits=(8,))
    with pytest.raises(ValueError, match="bits must be a whole number"):
        BitSchedule(begin=(5,), bits=(1,))
    with pytest.raises(ValueError, match="delayed: begin must be a whole number"):
        delayed(lsq(2), -1)
    transform = delayed(low_rank(1), 1)
    params, state = transform.init({"k": draw(4, 3, 3)})
    with pytest.raises(ValueError, match="takes a transform that keeps each weight"):
        transform.view(params, state)
    with pytest.raises(TypeError, match="stochastic_quant: format must be a Uniform"):
        stochastic_quant("nf4", jax.random.key(0))


# --------------------------------------------------------------------------------------------------- stochastic rounding


@pytest.mark.parametrize("fmt", [Uniform(3), Uniform(2, symmetric=False, channel_axis=-1), Uniform(3, group_size=4)], ids=str)
def test_stochastic_rounding_is_right_on_average(fmt):
    w, count = draw(5, 8, 3), 4000
    transform = stochastic_quant(fmt, jax.random.key(1))
    params, state = transform.init({"k": w})
    keys = jax.random.split(jax.random.key(2), count)
    found = np.asarray(jax.jit(jax.vmap(lambda key: transform.view(params, state._replace(key=key))["k"]))(keys), np.float64)
    step = np.broadcast_to(np.asarray(quantize(w, fmt).scale), quantize(w, fmt).scale.shape).max()
    # Within the range: an affine one may end half a step inside the weights.
    inside = (found.max(0) >= np.asarray(w)) & (found.min(0) <= np.asarray(w))
    assert inside.mean() > 0.8
    np.testing.assert_allclose(found.mean(0)[inside], np.asarray(w)[inside], atol=4.5 * step / 2 / np.sqrt(count))
    for element in np.ndindex(w.shape):
        values = np.unique(found[(slice(None), *element)])
        assert len(values) <= 2  # the levels on either side


def test_draws_are_the_same_until_the_next_update():
    transform = stochastic_quant(3, jax.random.key(0))
    params, state = transform.init({"a": draw(6, 9, 9), "b": draw(6, 9, 9)})
    first = transform.view(params, state)
    assert first["a"].tolist() != first["b"].tolist()  # leaves draw for themselves
    assert transform.view(params, state)["a"].tolist() == first["a"].tolist()
    assert unpack(pack(transform, params, state))["a"].tolist() == first["a"].tolist()
    later = transform.view(*transform.update(params, state, params, 0))
    assert later["a"].tolist() != first["a"].tolist()
    slopes = jax.grad(lambda p: jnp.sum(transform.view(p, state)["a"] * 3))(params)
    assert (slopes["a"] == 3).all()


def test_stochastic_rounding_keeps_levels_and_zeros():
    w = jnp.array([[3.0, -2.0, 0.0, 1.0]])
    transform = stochastic_quant(3, jax.random.key(0))
    params, state = transform.init({"k": w})
    for number in range(20):
        assert transform.view(params, state)["k"].tolist() == w.tolist()
        params, state = transform.update(params, state, params, number)
