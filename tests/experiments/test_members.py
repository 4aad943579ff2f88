"""Many runs in one program: the same as each run by itself, through the library's own loop."""

import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest

from experiments.common import members, unfinished
from experiments.common.config import Digits
from experiments.common.members import zero_dead_inputs
from experiments.common.training_settings import Training
from lepton_jax.core import paths
from lepton_jax.data import Dataset, active_features, batches, steps_per_epoch
from lepton_jax.models import LeNet300
from lepton_jax.pruning.sparse_training import dynamic_surgery
from lepton_jax.training import (
    FitSettings,
    batch_source,
    classification_loss,
    create,
    fit,
    linen_apply,
    make_train_step,
    stacked,
)
from lepton_jax.training.arrays import to_arrays

CONFIG = Training(name="t", data=Digits(), model=LeNet300(hidden=(6,)), epochs=2, batch_size=64)
RUNS = [(c, seed) for c in (0.2, 1.2) for seed in (0, 1)]
TX = optax.adam(1e-2)
LOSS = classification_loss(linen_apply(CONFIG.model))


def method(c, key):
    """Prune and splice: masks depend on data, weights, moments and chance of all steps before."""
    return dynamic_surgery(c, key, end=1000, gamma=0.1, interval=2)


STEP = make_train_step(LOSS, TX, method(0.5, jax.random.key(0)))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = Digits().load()
    return dataclasses.replace(whole, train=whole.train.take(np.arange(330)))


def begin(c, params, model_state, key):
    return create(params, model_state, TX, method(c, jax.random.fold_in(key, 7)), key)


def started(digits):
    return stacked.stack([members.start(CONFIG, digits, partial(begin, c), (0, 1)) for c in (0.2, 1.2)])


@pytest.fixture(scope="module")
def apart(digits):
    """Every run by itself: `fit` over `batches`."""
    ends = []
    for c, seed in RUNS:
        key, init_key = jax.random.split(jax.random.key(seed))
        params = jax.jit(CONFIG.model.init)(init_key, digits.train.images[:1])["params"]
        state = begin(c, zero_dead_inputs(params, active_features(digits.train.images)), {}, key)
        steps = CONFIG.epochs * steps_per_epoch(digits.train, CONFIG.batch_size)

        def stream(first, seed=seed):
            return batches(digits.train, CONFIG.batch_size, seed=seed, start_step=first)

        ends.append(fit(state, STEP, batch_source(stream), FitSettings(steps=steps, progress=False)))
    return ends


@pytest.mark.parametrize("how", [{}, {"vmap": 3}, {"scan": False}], ids=["mapped", "vmapped", "looped"])
def test_a_sweep_equals_separate_runs(digits, apart, how):
    config = dataclasses.replace(CONFIG, **how)
    seeds = [seed for _, seed in RUNS]
    together = members.train(config, digits.train, STEP, started(digits), seeds, epochs=2)
    assert stacked.count(together) == len(RUNS)
    assert int(together.step) == 10
    for number, alone in enumerate(apart):
        mine = stacked.member(together, number)
        assert jax.tree.structure(mine) == jax.tree.structure(alone)
        for path, mask in alone.tstate.masks.items():
            np.testing.assert_array_equal(mine.tstate.masks[path], mask, err_msg=f"{RUNS[number]} {path}")
        for path, leaf in paths.flatten(alone.params).items():
            other = paths.flatten(mine.params)[path]
            assert other.dtype == leaf.dtype
            np.testing.assert_allclose(other, leaf, rtol=1e-5, atol=1e-6, err_msg=f"{RUNS[number]} {path}")
    kept = [int(state.tstate.masks["Dense_0/kernel"].sum()) for state in apart]
    assert min(kept[:2]) > max(kept[2:])
    first, second = (apart[number].tstate.masks["Dense_0/kernel"] for number in (0, 1))
    assert (first != second).any()  # seeds have masks of their own


def test_epochs_in_two_parts_are_the_same_run(digits):
    seeds = [seed for _, seed in RUNS]
    whole = members.train(CONFIG, digits.train, STEP, started(digits), seeds, epochs=2)
    half = members.train(CONFIG, digits.train, STEP, started(digits), seeds, epochs=1)
    rest = members.train(CONFIG, digits.train, STEP, half, seeds, epochs=1, first_epoch=1)
    for path, leaf in paths.flatten(whole.params).items():
        np.testing.assert_array_equal(paths.flatten(rest.params)[path], leaf)


def test_order_is_that_of_batches(digits):
    stream = batches(digits.train, 64, seed=3, start_step=5)
    for places in members.order(digits.train, 64, 3, 1):
        np.testing.assert_array_equal(digits.train.labels[places], next(stream).labels)


def test_a_loss_that_is_not_finite_names_the_member(digits):
    state = started(digits)
    broken = jax.tree.map(lambda leaf: leaf.at[2].set(np.nan), state.params)
    with pytest.raises(FloatingPointError, match=r"rigl: .*step 0 of member 2 \(seed 0\) gave loss nan"):
        members.train(CONFIG, digits.train, STEP, state._replace(params=broken), [0, 1, 0, 1], epochs=1, name="rigl")


def test_states_of_different_structure_do_not_stack(digits):
    dense = members.start(CONFIG, digits, lambda p, m, key: create(p, m, optax.sgd(0.1), method(0.5, key), key), (0,))
    with pytest.raises(ValueError, match="trained apart"):
        stacked.stack([started(digits), dense])


@pytest.mark.parametrize("scan", [True, False])
def test_an_interrupted_training_goes_on_from_its_checkpoint(digits, scan, tmp_path, monkeypatch, halting):
    """To the same states and the same history, without the epochs that it has had."""
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    config, seeds = dataclasses.replace(CONFIG, scan=scan), (0, 1, 0, 1)

    def sums(state):
        return {"sum": [float(x) for x in state.params["Dense_0"]["kernel"].sum(axis=(1, 2))]}

    def run(history, folder):
        args = (config, digits.train, STEP, started(digits), seeds)
        return members.train(*args, epochs=3, name="of one, two", history=history, run_dir=folder)

    whole = halting(sums)
    expected = run(whole, None)
    with pytest.raises(KeyboardInterrupt):
        run(halting(sums, last=2), tmp_path)
    resumed = halting(sums)
    found = run(resumed, tmp_path)
    assert (resumed.calls, resumed.epochs) == (1, whole.epochs)
    jax.tree.map(np.testing.assert_array_equal, to_arrays(found), to_arrays(expected))
    with pytest.raises(ValueError, match="another configuration"):
        members.train(config, digits.train, STEP, started(digits), (1, 0, 1, 0), epochs=3, name="of one, two", run_dir=tmp_path)
