"""Adam by weight: adam while nothing is reset, and its own count afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax.core import paths
from lepton_jax.pruning.sparse_training import fixed_masks, masked_moments, scale_by_adam_by_weight


def gradients(seed: int, steps: int) -> list[dict]:
    draw = np.random.default_rng(seed).normal
    return [{"a": jnp.asarray(draw(size=(3, 2)), jnp.float32), "b": {"c": jnp.float32(draw())}} for _ in range(steps)]


def test_without_a_reset_it_is_adam() -> None:
    ours, theirs = scale_by_adam_by_weight(0.8, 0.99, 1e-6), optax.scale_by_adam(0.8, 0.99, 1e-6)
    params = gradients(0, 1)[0]
    state, reference = ours.init(params), theirs.init(params)
    update = jax.jit(ours.update)
    for grads in gradients(1, 6):
        steps, state = update(grads, state)
        expected, reference = theirs.update(grads, reference)
        assert jax.tree.structure(steps) == jax.tree.structure(expected)
        for path, leaf in paths.flatten(steps).items():
            assert leaf.dtype == jnp.float32
            np.testing.assert_allclose(leaf, paths.flatten(expected)[path], rtol=2e-5)


def test_a_grown_weight_takes_the_first_steps_of_a_run() -> None:
    """Weight 1 is pruned for five steps, then grows: from there it steps as a fresh adam does."""
    tx = masked_moments(scale_by_adam_by_weight())
    params = {"w": jnp.zeros(2)}
    masks = [jnp.array([True, False])] * 5 + [jnp.array([True, True])] * 4
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(9, 2)).astype(np.float32)
    state, taken = tx.init(params), []
    for mask, draw in zip(masks, draws):
        tstate = fixed_masks({"w": mask}).init(params)[1]
        steps, state = tx.update({"w": jnp.asarray(draw)}, state, params, tstate=tstate)
        taken.append(np.asarray(steps["w"]))
    assert [step[1] for step in taken[:5]] == [0.0] * 5
    m = v = np.float64(0)
    for k, (g, step) in enumerate(zip(draws[5:, 1].astype(np.float64), taken[5:]), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        np.testing.assert_allclose(step[1], m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8), rtol=1e-4)
    np.testing.assert_allclose(abs(taken[5][1]), 1, rtol=1e-4)  # one rate, where the run's count would give 3.2
    assert state.count["w"].tolist() == [9, 4]


@pytest.mark.parametrize("bad", [{"b1": 1.0}, {"b2": -0.1}, {"eps": -1.0}])
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        scale_by_adam_by_weight(**bad)
