"""Pruning in training: exact counts, hand-computed gradients, masters that stay where they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import chain, fake_quant, freeze, pack, prune
from lepton_jax.core.schedules import constant, polynomial
from lepton_jax.pruning import apply_mask
from lepton_jax.pruning.criteria import Criterion
from lepton_jax.quantization import Codebook, QArray

FOUR = {"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}


def pull(params: dict) -> jax.Array:
    """A loss whose gradient is known: ``sum c w``."""
    return jnp.sum(jnp.array([[1.0, 2.0], [3.0, 5.0]]) * params["kernel"])


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_masked_gradients_by_hand() -> None:
    transform = prune(0.5)
    params, state = transform.init(FOUR)
    assert transform.view(params, state)["kernel"].tolist() == [[0.0, -4.0], [3.0, 0.0]]
    grads = jax.grad(lambda p: pull(transform.view(p, state)))(params)
    assert grads["kernel"].tolist() == [[0.0, 2.0], [3.0, 0.0]]


def test_straight_through_gradients_by_hand() -> None:
    transform = prune(0.5, gradient="straight_through")
    params, state = transform.init(FOUR)
    assert transform.view(params, state)["kernel"].tolist() == [[0.0, -4.0], [3.0, 0.0]]
    grads = jax.grad(lambda p: pull(transform.view(p, state)))(params)
    assert grads["kernel"].tolist() == [[1.0, 2.0], [3.0, 5.0]]


def test_golden_step_of_pruning_and_sgd() -> None:
    """One step of ``mean((x V(w) - y)^2)`` at rate 0.1, in float64 by numpy; then the mask follows the schedule."""
    w, x, y = (np.asarray(draw(seed, *shape), np.float64) for seed, shape in ((1, (4, 3)), (2, (5, 4)), (3, (5, 3))))
    schedule = polynomial(0.5, begin=0, end=2, power=1)
    transform = prune(schedule)

    def lowest(values: np.ndarray, count: int) -> np.ndarray:
        return np.argsort(np.abs(values).reshape(-1), kind="stable")[:count]

    expected = w.copy()
    residual = x @ expected - y  # step 0: nothing is pruned yet
    expected -= 0.1 * 2 * x.T @ residual / residual.size
    expected.reshape(-1)[lowest(expected, 3)] = 0  # step 1: sparsity 0.25 of 12

    params, state = transform.init({"w": jnp.asarray(w, jnp.float32)})
    tx = optax.sgd(0.1)
    inputs, targets = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    grads = jax.grad(lambda p: jnp.mean((inputs @ transform.view(p, state)["w"] - targets) ** 2))(params)
    updates, _ = tx.update(grads, tx.init(params), params)
    params, state = transform.update(optax.apply_updates(params, updates), state, grads, 1)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(transform.view(params, state)["w"]) == 0, expected == 0)
    assert float(state.sparsity) == 0.25


OPTIMIZERS = {
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "momentum": optax.sgd(0.05, momentum=0.9),
}


@pytest.mark.parametrize(
    ("name", "gradient"), [("adam", "masked"), ("adamw", "masked"), ("momentum", "masked"), ("adamw", "straight_through")]
)
def test_pruned_weights_are_zero_for_a_whole_run(name: str, gradient: str) -> None:
    tx = OPTIMIZERS[name]
    transform = prune(polynomial(0.8, begin=2, end=10), gradient=gradient)
    target, x = draw(5, 6, 5), draw(6, 8, 6)

    @jax.jit
    def run(carry: tuple, step: jax.Array) -> tuple:
        params, state, moments = carry
        grads = jax.grad(lambda p: jnp.mean((x @ transform.view(p, state)["w"] - x @ target) ** 2))(params)
        updates, moments = tx.update(grads, moments, params)
        params, state = transform.update(optax.apply_updates(params, updates), state, grads, step)
        return (params, state, moments), (transform.view(params, state)["w"], params["w"], state.masks["w"])

    params, state = transform.init({"w": draw(4, 6, 5)})
    _, (seen, masters, masks) = jax.lax.scan(run, (params, state, tx.init(params)), jnp.arange(20))
    seen, masters, masks = np.asarray(seen), np.asarray(masters), np.asarray(masks)
    assert (seen[~masks] == 0).all()
    np.testing.assert_array_equal(seen[masks], masters[masks])
    done = np.clip((np.arange(20) - 2) / 8, 0, 1)
    np.testing.assert_array_equal(masks.sum((1, 2)), 30 - np.round(0.8 * (1 - (1 - done) ** 3) * 30))
    if gradient == "masked":
        assert (masters[~masks] == 0).all(), "no drift through momentum or decay"
        assert not (masks[1:] & ~masks[:-1]).any(), "what was pruned never returns"
    else:
        assert (np.abs(masters[~masks]) > 0).all(), "masters live on"


def test_regrowth_under_straight_through() -> None:
    transform = prune(0.5, gradient="straight_through")
    params, state = transform.init(FOUR)
    grown = {"kernel": jnp.array([[9.0, -4.0], [3.0, 2.0]])}
    params, state = transform.update(grown, state, grown, 1)
    assert transform.view(params, state)["kernel"].tolist() == [[9.0, -4.0], [0.0, 0.0]]
    assert params["kernel"].tolist() == grown["kernel"].tolist()


def test_masked_weights_do_not_return() -> None:
    transform = prune(0.5)
    params, state = transform.init(FOUR)
    grown = {"kernel": jnp.array([[9.0, -4.0], [3.0, 2.0]])}
    params, state = transform.update(grown, state, grown, 1)
    assert params["kernel"].tolist() == transform.view(params, state)["kernel"].tolist() == [[0.0, -4.0], [3.0, 0.0]]


def test_interval() -> None:
    transform = prune(polynomial(0.9, begin=0, end=9, power=1), interval=4)
    params, state = transform.init({"w": draw(0, 10, 10)})
    update = jax.jit(transform.update)
    removed = []
    for step in range(13):
        params, state = update(params, state, params, step)
        removed.append(100 - int(state.masks["w"].sum()))
    # Every four steps, and once more when the schedule arrives.
    assert removed == [0, 0, 0, 0, 40, 40, 40, 40, 80, 90, 90, 90, 90]


@pytest.mark.parametrize("target", [0.42, 0.77, 0.985])
def test_where_a_schedule_arrives_the_count_is_exact(target: float) -> None:
    """Whatever a compiler makes of the division by the target."""
    size = 300 * 784
    transform = prune(polynomial(target, begin=0, end=7))
    params, state = transform.init({"w": draw(1, 300, 784)})
    _, state = jax.jit(transform.update)(params, state, params, 7)
    assert int(state.masks["w"].sum()) == size - round(target * size)


def test_global_scope_and_score_scale() -> None:
    params = {"a": jnp.array([[1.0, 2.0, 3.0]]), "b": jnp.array([[10.0, 20.0, 30.0]])}
    both = prune(0.5, scope="global", select="*").init(params)[1].masks  # a is below the threshold; its best stays
    assert {path: mask.tolist() for path, mask in both.items()} == {"a": [[False, False, True]], "b": [[True] * 3]}
    scaled = prune(0.5, scope="global", score_scale={"a": 15.0}, select="*").init(params)[1].masks
    assert {path: mask.tolist() for path, mask in scaled.items()} == {"a": [[False, True, True]], "b": [[False, False, True]]}


def test_global_ties_are_broken_alike_in_init_and_under_jit() -> None:
    """In the tree's order, not the sorted paths' ('10' < '2'); one stays of every leaf."""
    params = tuple(jnp.ones((2, 2)) for _ in range(12))
    transform = prune(0.5, scope="global", gradient="straight_through")
    params, state = transform.init(params)
    assert [int(state.masks[str(i)].sum()) for i in range(12)] == [4] * 6 + [1] * 6
    _, after = jax.jit(transform.update)(params, state, params, 1)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after.masks, state.masks))


def test_an_allocation_gives_each_leaf_its_own() -> None:
    def half_of_the_last(shapes: dict, sparsity: float) -> dict:
        return {path: sparsity * (0.5 if path == "b" else 1.0) for path in shapes}

    transform = prune(polynomial(0.8, begin=0, end=2, power=1), allocation=half_of_the_last)
    params, state = transform.init({"a": draw(0, 4, 5), "b": draw(1, 4, 5)})
    for step, removed in ((1, (8, 4)), (2, (16, 8))):
        params, state = transform.update(params, state, params, step)
        assert tuple(20 - int(state.masks[path].sum()) for path in "ab") == removed


def test_frozen_masks_hold_in_a_later_phase() -> None:
    first = prune(0.5)
    params, state = first.init({"w": draw(2, 6, 4), "bias": draw(3, 4)})
    later = chain(freeze(first, state), fake_quant(bits=4))
    params, states = later.init(params)
    mask = np.asarray(state.masks["w"])
    for step in range(3):
        params = jax.tree.map(lambda w: w + 1.0, params)
        params, states = later.update(params, states, params, step)
        seen = np.asarray(later.view(params, states)["w"])
        assert (seen[~mask] == 0).all()
        assert (seen[mask] != 0).any()
    assert isinstance(pack(later, params, states)["w"], QArray)


def test_masks_survive_the_leaf_they_were_made_for() -> None:
    """A codebook in the weight's place: zeros stay; a schedule that still runs is refused, not forgotten."""
    codebook = fake_quant(Codebook(bits=1))
    params = {"w": draw(2, 6, 4)}
    done = chain(prune(0.5), codebook)
    masters, state = done.init(params)
    masters, state = done.update(masters, state, masters, 1)
    assert int((done.view(masters, state)["w"] != 0).sum()) == 12
    running = chain(prune(polynomial(0.5, begin=0, end=4)), codebook)
    masters, state = running.init(params)
    with pytest.raises(ValueError, match=r"masks of w cannot follow the schedule.*phase of its own"):
        running.update(masters, state, masters, 1)


def test_empty_leaves() -> None:
    transform = prune(0.5)
    params, state = transform.init({"w": jnp.zeros((0, 3)), "v": FOUR["kernel"]})
    assert transform.view(params, state)["w"].shape == (0, 3)
    assert int(state.masks["v"].sum()) == 2


def test_apply_mask_keeps_the_dtype_and_drops_anything() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        seen = apply_mask(jnp.array([jnp.nan, -jnp.inf, -1.0, 2.0], dtype), jnp.array([False, False, False, True]))
        assert seen.dtype == dtype
        assert seen.tolist() == [0.0, 0.0, 0.0, 2.0]
        assert not np.signbit(np.asarray(seen, np.float32)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.9}, r"must be in \[0, 1\).*got 1.9. For 90 %, write 0.9"),
        ({"sparsity": 1.0}, r"must be in \[0, 1\)"),
        ({"sparsity": -0.1}, r"must be in \[0, 1\)"),
        ({"sparsity": float("nan")}, r"must be in \[0, 1\)"),
        ({"gradient": "mask"}, "gradient must be 'masked' or 'straight_through'; got 'mask'"),
        ({"scope": "model"}, "scope must be 'layer' or 'global'; got 'model'"),
        ({"interval": 0}, "interval must be at least 1 step; got 0"),
    ],
    ids=str,
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**({"sparsity": 0.5} | options))


def test_misspelt_option() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'gradiant'"):
        prune(0.5, gradiant="masked")


@pytest.mark.parametrize(
    "options", [{"select": "*/kernle"}, {"score_scale": {"kernle": 2.0}, "scope": "global"}, {"select": ()}], ids=str
)
def test_selectors_that_match_nothing(options: dict) -> None:
    with pytest.raises(ValueError, match=r"matches no floating leaf. The floating leaves are: kernel"):
        prune(0.5, **options).init(FOUR)


def test_a_number_is_a_constant_schedule() -> None:
    for sparsity in (0.25, constant(0.25)):
        assert prune(sparsity).init(FOUR)[1].masks["kernel"].tolist() == [[False, True], [True, True]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smallest(Criterion):
    """Prefer what is small: a weight set to zero would be the first to return."""

    def scores(self, weight, state):
        return -jnp.abs(weight)


def test_a_masked_weight_never_returns_whatever_the_criterion() -> None:
    transform = prune(polynomial(0.8, begin=0, end=4, power=1), criterion=Smallest())
    params, state = transform.init({"w": draw(7, 5, 10)})
    before = np.ones((5, 10), bool)
    for step in range(6):
        params, state = transform.update(params, state, params, step)
        mask = np.asarray(state.masks["w"])
        assert not (mask & ~before).any()
        before = mask
    assert before.sum() == 10


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"score_scale": {"*": 2.0}}, "score_scale"),
        ({"scope": "global", "allocation": lambda shapes, sparsity: dict.fromkeys(shapes, sparsity)}, "allocation"),
    ],
)
def test_a_setting_that_the_scope_would_pass_over_is_refused(settings, says) -> None:
    with pytest.raises(ValueError, match=says):
        prune(0.5, **settings)


@pytest.mark.parametrize("grads", [None, {}, {"other": jnp.ones(2)}], ids=str)
def test_an_update_without_gradients_says_so(grads) -> None:
    params, state = prune(0.5).init(FOUR)
    with pytest.raises(ValueError, match=r"takes the gradients(.|\n)*kernel: no gradient given"):
        prune(0.5).update(params, state, grads, 1)
