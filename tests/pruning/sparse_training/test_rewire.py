"""SET and RigL: hand-computed updates, exact counts, what grows and how it starts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax import Transform, pack, prune, unpack
from lepton_jax.pruning import allocation, check_scores, keep_count
from lepton_jax.pruning.criteria import Random
from lepton_jax.pruning.sparse_training import RewireState, fixed_masks, masked_moments, rigl, set_
from lepton_jax.pruning.sparse_training.rewire import rewire
from lepton_jax.pruning.state import no_failure
from lepton_jax.training import Checkpoints, TrainState, create, make_train_step

METHODS = {"rigl": rigl, "set_": set_}


def mask_of(*bits: int) -> jax.Array:
    return jnp.array(bits, bool)


def state_of(mask: jax.Array) -> RewireState:
    return RewireState({"w": mask}, jax.random.key(0), no_failure(1))


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tree(seed: int = 0) -> dict:
    return {"a": {"kernel": draw(seed, 12, 10), "bias": draw(seed + 1, 10)}, "b": {"kernel": draw(seed + 2, 10, 6)}}


def counts(state: RewireState) -> dict[str, int]:
    return {path: int(mask.sum()) for path, mask in state.masks.items()}


def rewired(mask: np.ndarray, weight: np.ndarray, score: np.ndarray, fraction: float) -> np.ndarray:
    """One leaf of `rewire`, by sorting: algorithm 1 of Evci et al. 2020, whose candidates for growth are all but what stays."""
    k = int(np.round(np.float32(fraction) * np.float32(mask.sum())))
    stays = sorted(np.flatnonzero(mask), key=lambda i: -abs(weight[i]))[: mask.sum() - k]
    others = [i for i in range(mask.size) if i not in set(stays)]
    new = np.zeros(mask.size, bool)
    new[[*stays, *sorted(others, key=lambda i: -score[i])[:k]]] = True
    return new


def test_rigl_by_hand() -> None:
    """Eight weights, five kept; f = 0.4 drops -0.1 and 0.2; the gradients -9 and 8 grow, of which 8 was dropped just now."""
    transform = rigl(0.375, jax.random.key(0), end=100, interval=10, fraction=lambda step: 0.4, select="w")
    mask = mask_of(1, 1, 0, 1, 0, 1, 0, 1)
    params = {"w": jnp.array([3.0, -0.1, 7.0, 0.2, 7.0, -2.0, 7.0, 1.0])}
    grads = {"w": jnp.array([90.0, 8.0, -9.0, 1.0, 4.0, 0.0, 5.0, 0.0])}  # 90 is of a weight that stays
    for step, moves in ((0, False), (9, False), (10, True), (100, False), (110, False)):
        new, state = transform.update(params, state_of(mask), grads, step)
        if moves:
            assert state.masks["w"].tolist() == [True, True, True, False, False, True, False, True]
            # Grown from zero, not from 7; what was never gone keeps its value.
            assert new["w"].tolist() == [3.0, pytest.approx(-0.1), 0.0, 0.0, 0.0, -2.0, 0.0, 1.0]
        else:
            np.testing.assert_array_equal(state.masks["w"], mask)
            assert new["w"].tolist() == [3.0, pytest.approx(-0.1), 0.0, pytest.approx(0.2), 0.0, -2.0, 0.0, 1.0]


def test_set_by_hand() -> None:
    """The two smallest go; two of all five others come, by the draw of the key and step that the state and call give."""
    transform = set_(0.375, jax.random.key(0), end=100, interval=10, fraction=0.4, select="w")
    mask = mask_of(1, 1, 0, 1, 0, 1, 0, 1)
    params = {"w": jnp.array([3.0, -0.1, 7.0, 0.2, 7.0, -2.0, 7.0, 1.0])}
    grads = jax.tree.map(jnp.zeros_like, params)
    seen = set()
    for step in range(10, 100, 10):
        new, state = transform.update(params, state_of(mask), grads, step)
        (key,) = jax.random.split(jax.random.fold_in(jax.random.key(0), step), 1)
        drawn = np.asarray(jax.random.uniform(key, (8,)))
        grown = sorted((1, 2, 3, 4, 6), key=lambda i, d=drawn: -d[i])[:2]
        assert state.masks["w"].tolist() == [i in (0, 5, 7, *grown) for i in range(8)]
        kept = {0: 3.0, 5: -2.0, 7: 1.0, **{i: w for i, w in ((1, np.float32(-0.1)), (3, np.float32(0.2))) if i in grown}}
        assert new["w"].tolist() == [kept.get(i, 0.0) for i in range(8)]
        seen.add(tuple(grown))
    assert len(seen) > 1  # another step, another draw


def test_the_fraction_decays_by_the_cosine() -> None:
    """Of 100 kept weights round(100 * 0.15 (1 + cos(pi t / 40))) each are exchanged, where all others have more gradient."""
    transform = rigl(0.5, jax.random.key(3), end=40, interval=10, fraction=0.3, select="w")
    params, state = transform.init({"w": draw(0, 200)})
    for step in (10, 20, 30):
        _, after = transform.update(params, state, {"w": jnp.where(state.masks["w"], 0.0, 1 + draw(step, 200) ** 2)}, step)
        moved = int(jnp.sum(state.masks["w"] & ~after.masks["w"]))
        assert moved == round(100 * 0.15 * (1 + np.cos(np.pi * step / 40)))


@pytest.mark.parametrize("equal", ["weights", "gradients", "nan"])
def test_counts_are_exact_under_ties(equal: str) -> None:
    values = {"weights": (jnp.ones(40), draw(1, 40)), "gradients": (draw(0, 40), jnp.ones(40))}
    weight, grad = values.get(equal, (jnp.full(40, jnp.nan), jnp.full(40, jnp.nan)))
    for kept in (0, 1, 7, 39, 40):
        mask = jax.random.permutation(jax.random.key(kept), jnp.arange(40) < kept)
        for fraction in (0.0, 0.3, 1.0):
            after, not_finite = rewire({"w": mask}, {"w": weight}, {"w": jnp.abs(grad)}, fraction)
            dropped = round(fraction * kept)  # ranked twice: as weights, and as candidates for growth
            assert not_finite.tolist() == [40 + dropped if equal == "nan" else 0]
            assert int(after["w"].sum()) == kept
            if equal != "nan":
                expected = rewired(np.asarray(mask), np.asarray(weight), np.asarray(jnp.abs(grad)), fraction)
                np.testing.assert_array_equal(after["w"], expected)
    ones = {"w": jnp.ones(8)}
    after, _ = rewire({"w": jnp.arange(8) >= 4}, ones, ones, 0.5)  # ties: the lower index stays and grows
    assert after["w"].tolist() == [True, True, False, False, True, True, False, False]


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_of_the_papers_algorithm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = {name: rng.normal(size=(3, size)).astype(np.float32) for name, size in (("a", 23), ("b", 60), ("c", 1))}
    masks = {name: rng.random(rows.shape[1]) < rng.random() for name, rows in leaves.items()}
    fraction = float(rng.random())
    new, not_finite = jax.jit(rewire)(
        masks,
        {name: rows[0] for name, rows in leaves.items()},
        {name: np.abs(rows[1]) for name, rows in leaves.items()},
        fraction,
    )
    assert not_finite.tolist() == [0, 0, 0]
    for name, rows in leaves.items():
        np.testing.assert_array_equal(new[name], rewired(masks[name], rows[0], np.abs(rows[1]), fraction))


@pytest.mark.parametrize(("name", "where"), [("rigl", "gradient"), ("rigl", "weight"), ("set_", "weight")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_changes_no_mask_and_is_reported(name: str, where: str, bad: float) -> None:
    transform = METHODS[name](0.5, jax.random.key(0), end=100, interval=10, fraction=0.4)
    params, state = transform.init(tree())
    update = jax.jit(transform.update)
    place = tuple(np.argwhere(np.asarray(state.masks["b/kernel"]) == (where == "weight"))[0])  # ranked where it stands
    grads = tree(9)
    broken = (grads if where == "gradient" else params) | {}
    broken["b"] = {"kernel": broken["b"]["kernel"].at[place].set(bad)}
    changed = (params, broken) if where == "gradient" else (broken, grads)
    after = update(changed[0], state, changed[1], 10)[1]
    jax.tree.map(np.testing.assert_array_equal, after.masks, state.masks)
    later = update(params, after, grads, 20)[1]
    assert any(bool(jnp.any(later.masks[path] != after.masks[path])) for path in after.masks), "20 went well"
    for found in (after, later):
        with pytest.raises(ValueError, match=r"must be finite(.|\n)*\n  b/kernel: 1 scores are NaN or infinite at step 10$"):
            check_scores(found)
    check_scores(update(params, state, grads, 10)[1])


@pytest.mark.parametrize("name", METHODS)
def test_first_masks_are_random_and_exact(name: str) -> None:
    shapes = {"a/kernel": (12, 10), "b/kernel": (10, 6)}
    for allocate in (allocation.erk, allocation.uniform):
        transform = METHODS[name](0.7, jax.random.key(1), end=10, allocation=allocate)
        _, state = transform.init(tree())
        goals = allocate(shapes, 0.7)
        assert counts(state) == {path: keep_count(np.prod(shape), goals[path]) for path, shape in shapes.items()}
        assert state.masks["a/kernel"].dtype == jnp.bool_
    _, other = METHODS[name](0.7, jax.random.key(2), end=10, allocation=allocation.uniform).init(tree())
    assert not np.array_equal(state.masks["a/kernel"], other.masks["a/kernel"])


def test_views_and_gradients() -> None:
    """RigL sees the gradient of the zero that stands for a pruned weight; SET sees none. NaN there reaches neither."""
    mask, slope = mask_of(1, 0, 1, 0), jnp.array([1.0, 2.0, 3.0, 4.0])
    weight = jnp.array([5.0, jnp.nan, -5.0, jnp.inf])
    for method, expected in ((rigl, 2 * (jnp.array([5.0, 0, -5.0, 0]) - slope)), (set_, jnp.array([8.0, 0, -16.0, 0]))):
        transform = method(0.5, jax.random.key(0), end=10, select="w")
        value, grads = jax.value_and_grad(lambda p, t=transform: jnp.sum((t.view(p, state_of(mask))["w"] - slope) ** 2))(
            {"w": weight}
        )
        assert float(value) == 16 + 4 + 64 + 16
        np.testing.assert_array_equal(grads["w"], expected)
        assert pack(transform, {"w": weight}, state_of(mask))["w"].tolist() == [5.0, 0.0, -5.0, 0.0]
        assert unpack(pack(transform, {"w": weight}, state_of(mask)))["w"].tolist() == [5.0, 0.0, -5.0, 0.0]


def loss_fn(params: dict, model_state: dict, batch: jax.Array, key: jax.Array) -> tuple:
    hidden = jnp.tanh(batch @ params["a"]["kernel"] + params["a"]["bias"][None])
    return jnp.mean((hidden @ params["b"]["kernel"] - 1) ** 2), (model_state, {})


OPTIMIZERS = {
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "momentum": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9)),
}


@pytest.mark.parametrize(("method", "name"), [("rigl", "adam"), ("rigl", "momentum"), ("set_", "adamw")])
def test_a_whole_run(method: str, name: str) -> None:
    """Pruned weights are zero in view and masters at every step, counts stay, moments follow, one trace."""
    transform, tx = METHODS[method](0.7, jax.random.key(1), end=30, interval=4), masked_moments(OPTIMIZERS[name])
    traces = []

    def counted(*args: object) -> tuple:
        traces.append(1)
        return loss_fn(*args)

    state, step = create(tree(), {}, tx, transform, jax.random.key(0)), make_train_step(counted, tx, transform)
    start, changes = counts(state.tstate), 0
    for number in range(40):
        before = {path: np.asarray(mask) for path, mask in state.tstate.masks.items()}
        state, metrics = step(state, draw(number, 8, 12))
        assert np.isfinite(metrics["loss"])
        assert counts(state.tstate) == start
        seen = transform.view(state.params, state.tstate)
        for path, mask in state.tstate.masks.items():
            layer = path.split("/")[0]
            assert not np.asarray(seen[layer]["kernel"])[~np.asarray(mask)].any()
            assert not np.asarray(state.params[layer]["kernel"])[~np.asarray(mask)].any()
            for moment in jax.tree.leaves(state.opt_state):
                if moment.shape == mask.shape:
                    assert not np.asarray(moment)[~before[path]].any()  # what grew in this step starts from zero
            changed = bool((np.asarray(mask) != before[path]).any())
            assert not changed or (number < 30 and number % 4 == 0)
            changes += changed
    assert len(traces) == 1
    assert changes >= 6


@pytest.mark.parametrize("name", METHODS)
def test_stacked_runs_of_seeds_and_sparsities_are_separate_runs(name: str) -> None:
    """The update takes its counts and keys from the state: one transform serves stacked states of several."""
    tx = masked_moments(optax.adam(0.05))
    settings = [(0.5, 0), (0.8, 1), (0.95, 2)]
    make = partial(METHODS[name], end=10, interval=2)
    step = make_train_step(loss_fn, tx, make(0.5, jax.random.key(0)))
    alone = []
    for sparsity, seed in settings:
        params, tstate = make(sparsity, jax.random.key(seed)).init(tree(seed))
        alone.append(TrainState(jnp.int32(0), params, {}, tx.init(params), tstate, jax.random.key(seed)))
    stacked, together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), jax.jit(jax.vmap(step, in_axes=(0, None)))
    for number in range(6):
        stacked, _ = together(stacked, draw(number, 8, 12))
        alone = [step(one, draw(number, 8, 12))[0] for one in alone]
    for i, one in enumerate(alone):
        for path, mask in one.tstate.masks.items():
            np.testing.assert_array_equal(stacked.tstate.masks[path][i], mask)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), stacked.params, one.params)


def test_sparsities_and_keys_may_be_traced() -> None:
    sparsities, keys, params = jnp.array([0.5, 0.8]), jax.random.split(jax.random.key(0), 2), tree()
    stacked = jax.jit(jax.vmap(lambda s, key: rigl(s, key, end=10).init(params)[1]))(sparsities, keys)
    for i, sparsity in enumerate((0.5, 0.8)):
        for path, mask in rigl(sparsity, keys[i], end=10).init(params)[1].masks.items():
            np.testing.assert_array_equal(stacked.masks[path][i], mask)


LIKE_WEIGHTS = {
    "fixed_masks": fixed_masks({"w": draw(1, 12, 10) > 0}),
    "random": prune(0.5, criterion=Random(key=jax.random.key(0))),
    **{name: method(0.5, jax.random.key(0), end=9) for name, method in METHODS.items()},
}


@pytest.mark.parametrize("name", LIKE_WEIGHTS)
def test_masks_lie_as_the_weights_do(name: str) -> None:
    spread = NamedSharding(jax.make_mesh((4,), ("x",)), PartitionSpec("x"))
    params = {"w": jax.device_put(draw(0, 12, 10), spread)}
    for init in (LIKE_WEIGHTS[name].init, jax.jit(LIKE_WEIGHTS[name].init)):
        assert init(params)[1].masks["w"].sharding.is_equivalent_to(spread, 2)


@pytest.mark.parametrize("name", [*METHODS, "fixed_masks"])
def test_a_donated_state_leaves_the_settings(name: str) -> None:
    """A transform begins anew after a loop that donated its first state."""
    fixed = fixed_masks({"w": mask_of(1, 0, 1, 0).reshape(2, 2)})
    transform = fixed if name == "fixed_masks" else METHODS[name](0.5, jax.random.key(0), end=9)
    params = {"w": jnp.ones((2, 2))}
    first = transform.init(params)[1]
    kept = first.masks["w"].tolist()
    spent = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf[...], state), donate_argnums=0)(first)
    assert first.masks["w"].is_deleted()
    assert spent.masks["w"].tolist() == transform.init(params)[1].masks["w"].tolist() == kept


def test_jit_is_eager_and_nnx_state() -> None:
    network = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1)))
    params = nnx.split(network, nnx.Param)[1]
    transform = set_(0.5, jax.random.key(5), end=10, interval=1)
    masters, state = transform.init(params)
    eager, jitted = (f(masters, state, masters, 3) for f in (transform.update, jax.jit(transform.update)))
    assert jax.tree.structure(eager[0]) == jax.tree.structure(params)
    for path in state.masks:
        np.testing.assert_array_equal(eager[1].masks[path], jitted[1].masks[path])
        assert not np.array_equal(eager[1].masks[path], state.masks[path])
    jax.tree.map(np.testing.assert_array_equal, eager[0], jitted[0])


def test_resumed_is_uninterrupted(tmp_path: object) -> None:
    transform, tx = set_(0.7, jax.random.key(1), end=10, interval=2), masked_moments(optax.adam(0.05))
    step = make_train_step(loss_fn, tx, transform)
    state = create(tree(), {}, tx, transform, jax.random.key(0))
    for number in range(3):
        state, _ = step(state, draw(number, 8, 12))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        resumed, _ = checkpoints.restore(state)
    for number in range(3, 6):
        state, resumed = step(state, draw(number, 8, 12))[0], step(resumed, draw(number, 8, 12))[0]
    jax.tree.map(np.testing.assert_array_equal, state.tstate.masks, resumed.tstate.masks)
    jax.tree.map(np.testing.assert_array_equal, state.params, resumed.params)


@pytest.mark.parametrize("name", METHODS)
def test_bad_arguments(name: str) -> None:
    method, key = METHODS[name], jax.random.key(0)
    for settings, match in (
        ({"end": 0}, "end must be a whole number from 1 up; got 0"),
        ({"end": 10, "interval": 0}, "interval must be a whole number from 1 up"),
        ({"end": 10, "fraction": 1.5}, r"fraction must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            method(0.5, key, **settings)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        method(1.0, key, end=10)
    with pytest.raises(TypeError, match="typed key"):
        method(0.5, jnp.zeros(2, jnp.uint32), end=10)
    transform: Transform = method(0.5, key, end=10)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        method(0.5, key, end=10, select="nothing").init(tree())
    params, state = transform.init(tree())
    with pytest.raises(ValueError, match=r"a/kernel: no gradient given(.|\n)*b/kernel: no gradient given"):
        transform.update(params, state, {}, 1)
    with pytest.raises(ValueError, match="a/kernel: a later transform"):
        transform.update({"b": params["b"]}, state, params, 1)
