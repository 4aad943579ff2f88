"""Criteria that look at weights, gradients and scales: scores against hand computation and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.pruning import keep_count, prune, top
from lepton_jax.pruning.criteria import (
    BatchNormScale,
    Criterion,
    Fisher,
    Given,
    Inverted,
    Lamp,
    LayerNormalized,
    Magnitude,
    Movement,
    Random,
    Saliency,
)

PER_LEAF = [Magnitude(), Saliency(), Movement(), Fisher(), Lamp()]


def gathered(criterion: Criterion, weights: list, grads: list) -> np.ndarray:
    """Scores of one leaf after steps with these weights and gradients."""
    state = criterion.init_all({"w": jnp.asarray(weights[0])}, {})["w"]
    for weight, grad in zip(weights, grads, strict=True):
        state = criterion.accumulate(state, jnp.asarray(weight), jnp.asarray(grad))
    return np.asarray(criterion.score_all({"w": jnp.asarray(weights[-1])}, {"w": state}, {})["w"])


def drawn(seed: int, steps: int = 5) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    return [list(rng.normal(size=(steps, 4, 3)).astype(np.float32)) for _ in range(2)]


W, G = [[[1.0, -2.0], [0.0, 4.0]], [[2.0, -1.0], [0.5, 4.0]]], [[[3.0, 0.5], [7.0, -1.0]], [[-1.0, -2.0], [4.0, 0.0]]]


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (Saliency(decay=0.5), [[0.5 * 3 + 2, 0.5 * 1 + 2], [2, 0.5 * 4]]),
        (Saliency(decay=1), [[5, 3], [2, 4]]),
        (Saliency(decay=0), [[2, 2], [2, 0]]),
        (Movement(), [[-3 + 2, 1 - 2], [-2, 4]]),
        (Fisher(), [[10 * 4 / 2, 4.25 * 1 / 2], [65 * 0.25 / 2, 1 * 16 / 2]]),
        (Fisher(decay=0), [[1 * 4 / 2, 4 / 2], [16 * 0.25 / 2, 0]]),
        (LayerNormalized(criterion=Saliency(decay=0)), np.array([[2, 2], [2, 0]]) / np.sqrt(12)),
        (Inverted(criterion=Movement()), [[1, 1], [2, -4]]),
    ],
    ids=repr,
)
def test_two_steps_by_hand(criterion, expected):
    scores = gathered(criterion, W, G)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_many_steps_in_float64(seed):
    weights, grads = drawn(seed)
    w, g = np.asarray(weights, np.float64), np.asarray(grads, np.float64)
    powers = 0.9 ** np.arange(4, -1, -1)[:, None, None]
    np.testing.assert_allclose(gathered(Saliency(), weights, grads), (powers * abs(w * g)).sum(0), rtol=1e-5)
    np.testing.assert_allclose(gathered(Movement(), weights, grads), -(w * g).sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gathered(Fisher(), weights, grads), (g**2).sum(0) * w[-1] ** 2 / 2, rtol=1e-5)
    np.testing.assert_allclose(gathered(Fisher(decay=0.9), weights, grads), (powers * g**2).sum(0) * w[-1] ** 2 / 2, rtol=1e-5)
    norm = np.sqrt((w[-1] ** 2).sum())
    np.testing.assert_allclose(gathered(LayerNormalized(), weights, grads), abs(w[-1]) / norm, rtol=1e-5)


def test_fisher_of_single_examples_is_half_the_hessian_of_a_linear_regression_at_its_noise():
    """For least squares with residuals of variance 1, E[g**2] is the diagonal of the Hessian."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)) * [1, 2, 0.5]
    w = np.array([1.0, -1.0, 2.0])
    grads = x * rng.normal(size=(4000, 1))
    criterion, state = Fisher(), jnp.zeros(3)
    state = jax.lax.scan(lambda s, g: (criterion.accumulate(s, jnp.zeros(3), g), None), state, jnp.asarray(grads, jnp.float32))[
        0
    ]
    scores = np.asarray(criterion.scores(jnp.asarray(w, jnp.float32), state)) / 4000
    np.testing.assert_allclose(scores, np.array([1, 4, 0.25]) * w**2 / 2, rtol=0.1)


@pytest.mark.parametrize("criterion", PER_LEAF, ids=repr)
def test_narrow_weights_have_scores_in_float32(criterion):
    w = jnp.array([1.5, -2.5, 0.0, 1.0], jnp.bfloat16)
    g = jnp.array([1.0, 3.0, 5.0, -7.0], jnp.bfloat16)
    state = criterion.accumulate(criterion.init(w), w, g)
    scores = criterion.scores(w, state)
    assert scores.dtype == jnp.float32
    wide = criterion.accumulate(criterion.init(w.astype(jnp.float32)), w.astype(jnp.float32), g.astype(jnp.float32))
    np.testing.assert_array_equal(scores, criterion.scores(w.astype(jnp.float32), wide))


@pytest.mark.parametrize("criterion", [*PER_LEAF, LayerNormalized(), Inverted(), LayerNormalized(criterion=Lamp())], ids=repr)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e30, 1e-30])
def test_scores_are_finite_for_constants(criterion, value):
    w = jnp.full((2, 3), value)
    states = criterion.init_all({"w": w}, {"w": w})
    states = {"w": criterion.accumulate(states["w"], w, jnp.zeros_like(w))}
    scores = criterion.score_all({"w": w}, states, {"w": w})["w"]
    assert scores.shape == w.shape
    assert bool(jnp.isfinite(scores).all())


# -------------------------------------------------------------------------------------------------------------------- LAMP


def lamp_by_definition(w: np.ndarray) -> np.ndarray:
    """Equation 1, weight by weight, in float64; of equal weights the later goes first."""
    flat = np.abs(np.asarray(w, np.float64).reshape(-1))
    scores = []
    for u, size in enumerate(flat):
        after = [v for v, other in enumerate(flat) if other > size or (other == size and v <= u)]
        total = (flat[after] ** 2).sum()
        scores.append(size**2 / total if total > 0 else 0.0)
    return np.reshape(scores, np.shape(w))


@pytest.mark.parametrize("seed", range(3))
def test_lamp(seed):
    w = np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32)
    np.testing.assert_allclose(Lamp().scores(jnp.asarray(w), ()), lamp_by_definition(w), rtol=1e-5)
    tied = np.round(w * 2) / 2
    np.testing.assert_allclose(Lamp().scores(jnp.asarray(tied), ()), lamp_by_definition(tied), rtol=1e-5)


def test_lamp_by_hand_and_scale_free():
    expected = [1 / 30, 4 / 29, 1.0, 9 / 25]
    for scale in (1.0, 1e30, 1e-25, -1.0):
        w = scale * jnp.array([1.0, -2.0, 4.0, 3.0])
        np.testing.assert_allclose(Lamp().scores(w, ()), expected, rtol=1e-5)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_lamp_within_a_leaf_is_magnitude_ties_included(sparsity):
    w = jnp.asarray(np.random.default_rng(1).integers(-3, 4, size=(40, 50)), jnp.float32)
    np.testing.assert_array_equal(top(Lamp().scores(w, ()), sparsity), top(jnp.abs(w), sparsity))


def test_lamp_leaves_every_leaf_weights_where_global_magnitude_leaves_the_one_that_is_always_kept():
    params = {"large": 100.0 + jnp.arange(16.0).reshape(4, 4), "small": jnp.full((4, 4), 0.01)}
    kept = lambda c: {p: int(m.sum()) for p, m in prune(0.5, criterion=c, scope="global").init(params)[1].masks.items()}  # noqa: E731
    assert kept(Magnitude()) == {"large": 16, "small": 1}
    assert min(kept(Lamp()).values()) > 1
    assert kept(LayerNormalized())["small"] > 1


# ---------------------------------------------------------------------------------------------------------- random and given


def test_random_differs_by_leaf_and_key_and_not_by_selection():
    weights = {name: jnp.zeros((50, 4)) for name in ("a", "b", "c/d")}

    def scores(key, weights):
        return Random(key=key).score_all(weights, Random(key=key).init_all(weights, {}), {})

    first = scores(jax.random.key(0), weights)
    assert {s.dtype for s in first.values()} == {jnp.dtype(jnp.float32)}
    everything = np.concatenate([np.ravel(s) for s in first.values()])
    assert everything.min() >= 0
    assert everything.max() < 1
    assert abs(everything.mean() - 0.5) < 0.05
    assert not (first["a"] == first["b"]).any()
    assert not (first["a"] == scores(jax.random.key(1), weights)["a"]).any()
    np.testing.assert_array_equal(scores(jax.random.key(0), {"c/d": weights["c/d"]})["c/d"], first["c/d"])


def test_random_over_keys_in_one_program():
    params = {"a": jnp.ones((6, 4)), "b": jnp.ones((6, 4))}

    def masks(key):
        return prune(0.5, criterion=Random(key=key)).init(params)[1].masks

    keys = jax.random.split(jax.random.key(3), 4)
    together = jax.jit(jax.vmap(masks))(keys)
    for number, key in enumerate(keys):
        for path, mask in masks(key).items():
            np.testing.assert_array_equal(together[path][number], mask)
            assert int(mask.sum()) == 12
    assert not (together["a"][0] == together["a"][1]).all()


def test_random_masks_stay_the_same_at_every_update():
    params = {"a": jnp.ones((6, 4))}
    transform = prune(0.5, criterion=Random(key=jax.random.key(0)), gradient="straight_through")
    _, state = transform.init(params)
    for step in range(3):
        _, after = transform.update(params, state, params, step)
        np.testing.assert_array_equal(after.masks["a"], state.masks["a"])


def test_given_masks_are_followed_and_survive_donation():
    mask = jnp.array([[True, False], [False, True]])
    criterion = Given(by_path={"w": mask, "other": mask})
    for _ in range(2):
        _, state = prune(0.5, criterion=criterion).init({"w": jnp.ones((2, 2))})
        np.testing.assert_array_equal(state.masks["w"], mask)
        jax.jit(lambda s: jax.tree.map(jnp.copy, s), donate_argnums=0)(state)
    assert mask.tolist() == [[True, False], [False, True]]
    scores = jnp.array([[0.1, 0.9], [0.3, 0.2]])
    held = Given(by_path={"w": scores})
    state = held.init_all({"w": scores}, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    assert float(scores.sum()) == 1.5


def test_given_names_every_leaf_that_lacks_scores():
    weights = {"a/kernel": jnp.ones((2, 2)), "b/kernel": jnp.ones((2, 2)), "c": jnp.ones((2, 2))}
    criterion = Given(by_path={"a/kernel": jnp.ones((2, 3)), "c": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"a/kernel: has shape \(2, 2\); got scores of shape \(2, 3\)\n.*b/kernel: has none"):
        criterion.init_all(weights, weights)


# ------------------------------------------------------------------------------------------------------------- batch norm


def batch_norm_params() -> dict:
    return {
        "Conv_0": {"kernel": jnp.ones((3, 3, 2, 4))},
        "BatchNorm_0": {"scale": jnp.array([0.5, -2.0, 0.0, 1.0], jnp.bfloat16), "bias": jnp.zeros(4)},
        "Dense_0": {"kernel": jnp.ones((4, 2))},
    }


def test_batch_norm_scale():
    params = batch_norm_params()
    criterion = BatchNormScale(scales={"Conv_*/kernel": "BatchNorm_0/scale"})
    _, state = prune(0.5, criterion=criterion, select="Conv_0/kernel").init(params)
    mask = state.masks["Conv_0/kernel"]
    assert np.asarray(mask).reshape(-1, 4).tolist() == [[False, True, False, True]] * 18
    scores = criterion.score_all({"Conv_0/kernel": params["Conv_0"]["kernel"]}, {"Conv_0/kernel": ()}, params)
    assert scores["Conv_0/kernel"].dtype == jnp.float32
    assert scores["Conv_0/kernel"].shape == (3, 3, 2, 4)
    inputs = BatchNormScale(scales={"Dense_0/kernel": "BatchNorm_0/scale"}, axis=0)
    scores = inputs.score_all({"Dense_0/kernel": params["Dense_0"]["kernel"]}, {}, params)["Dense_0/kernel"]
    assert scores.tolist() == [[0.5, 0.5], [2, 2], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("scales", "axis", "message"),
    [
        ({"Conv_9/kernel": "BatchNorm_0/scale"}, -1, r"'Conv_9/kernel' matches none(.|\n)*Conv_0/kernel: one pattern must"),
        ({"Conv_0/kernel": "Norm/scale"}, -1, "Conv_0/kernel: its scale Norm/scale is not in the tree"),
        ({"Conv_0/kernel": "BatchNorm_0/scale"}, 0, r"must have shape \(3,\).* axis 0; got \(4,\)"),
        ({"Conv_0/kernel": "BatchNorm_0/scale"}, 7, "Conv_0/kernel: has no axis 7"),
        ({"Conv_0/kernel": "BatchNorm_0/scale", "Conv*": "BatchNorm_0/scale"}, -1, "one pattern must match it; got 2"),
    ],
)
def test_batch_norm_scale_refuses(scales, axis, message):
    with pytest.raises(ValueError, match=message):
        prune(0.5, criterion=BatchNormScale(scales=scales, axis=axis), select="Conv_0/kernel").init(batch_norm_params())


# ---------------------------------------------------------------------------------------------------------------- wrappers


def test_inverted_keeps_what_the_other_removes():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)}
    kept = prune(0.5, criterion=Magnitude()).init(params)[1].masks["w"]
    inverse = prune(0.5, criterion=Inverted(criterion=Magnitude())).init(params)[1].masks["w"]
    np.testing.assert_array_equal(inverse, ~np.asarray(kept))


def test_wrappers_pass_gradients_on():
    for wrapper, sign in ((Inverted, -1), (LayerNormalized, 1)):
        criterion = wrapper(criterion=Movement())
        state = criterion.init_all({"w": jnp.ones(2)}, {})["w"]
        state = criterion.accumulate(state, jnp.array([1.0, 1.0]), jnp.array([3.0, -4.0]))
        scores = criterion.score_all({"w": jnp.ones(2)}, {"w": state}, {})["w"]
        np.testing.assert_allclose(scores / scores[1] * sign, np.array([-3, 4]) / 4 * sign, rtol=1e-6)
        assert float(scores[1]) * sign > 0


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_decay_must_be_a_fraction(decay):
    for criterion in (Saliency, Fisher):
        with pytest.raises(ValueError, match=f"{criterion.__name__}: decay must be in"):
            criterion(decay=decay)


def test_gathering_criteria_decide_after_the_schedule_begins():
    """Masks at the end follow what was gathered, not positions."""
    from lepton_jax.core.schedules import one_shot

    transform = prune(one_shot(0.5, begin=2), criterion=Saliency(decay=1))
    params, state = transform.init({"w": jnp.ones((2, 2))})
    assert bool(state.masks["w"].all())
    grads = {"w": jnp.array([[0.1, 3.0], [2.0, 0.2]])}
    for step in range(4):
        params, state = transform.update(params, state, grads, step)
    assert state.masks["w"].tolist() == [[False, True], [True, False]]
    assert int(state.masks["w"].sum()) == keep_count(4, 0.5)
