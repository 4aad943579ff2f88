"""Sensitivity of the loss to each leaf, and sparsities from it."""

import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.core import paths
from lepton_jax.pruning import keep_count, prune
from lepton_jax.pruning.criteria import Magnitude, Snip
from lepton_jax.pruning.sensitivity import Sensitivity, sensitivity

LEVELS = (0.25, 0.5, 0.9)


def loss(p: dict) -> jnp.ndarray:
    """Each leaf's own importance."""
    return 1 + 4 * jnp.sum((p["a"] - 1) ** 2) + jnp.sum((p["b"] - 1) ** 2) + jnp.sum(p["bias"] ** 2)


def ones() -> dict:
    return {"a": jnp.ones((4, 5)), "b": jnp.ones((10, 2)), "bias": jnp.zeros(3)}


def made(curves: dict, sizes: dict, loss: float = 0.0, levels: tuple = LEVELS) -> Sensitivity:
    return Sensitivity(
        sparsities=levels,
        curves={p: np.asarray(c, float) for p, c in curves.items()},
        loss=loss,
        shapes={p: (n,) for p, n in sizes.items()},
    )


def test_curves_by_hand():
    found = sensitivity(loss, ones(), sparsities=LEVELS, progress=False)
    assert found.loss == 1.0
    assert found.sparsities == LEVELS
    assert {p: c.tolist() for p, c in found.curves.items()} == {"a": [21.0, 41.0, 73.0], "b": [6.0, 11.0, 19.0]}
    assert found.shapes == {"a": (4, 5), "b": (10, 2)}


def test_curves_are_losses_of_masked_parameters():
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(6, 7)), jnp.float32), "b": jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(9, 6)), jnp.float32)
    measure = lambda p: jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - 1) ** 2)  # noqa: E731
    criterion = Snip(loss=measure)
    found = sensitivity(measure, params, sparsities=(0.4, 0.8), criterion=criterion, progress=False)
    for path in params:
        for level, value in zip(found.sparsities, found.curves[path]):
            transform = prune(level, criterion=criterion, select=path)
            assert value == pytest.approx(float(measure(transform.view(*transform.init(params)))), rel=1e-5)


def test_one_compilation_of_the_loss():
    traces = []

    def counted(p):
        traces.append(1)
        return loss(p)

    sensitivity(counted, ones(), sparsities=LEVELS, progress=False)
    assert len(traces) == 1


def test_equal_increases():
    """Straight curves of slopes 4 and 1: 0.8 of b for 0.2 of a, so as to lose as much for either."""
    found = made({"a": [1, 2, 3.6], "b": [0.25, 0.5, 0.9]}, {"a": 1000, "b": 1000})
    assert found.sparsities_for(0.5) == {"a": 0.2, "b": 0.8}
    # A leaf at its last measured level takes no more; the other does.
    assert found.sparsities_for(0.7) == {"a": 0.5, "b": 0.9}


def test_curves_that_fall_and_level_out():
    found = made({"a": [-1, -2, 5], "b": [3, 3, 3]}, {"a": 100, "b": 300})
    # Half of `a` costs nothing: nothing of `b` until the total needs it.
    assert found.sparsities_for(0.1) == {"a": 0.4, "b": 0.0}
    shares = found.sparsities_for(0.5)
    assert round(100 * shares["a"] + 300 * shares["b"]) == 200
    assert shares["b"] > 0
    flat = made({"a": [0, 0, 0], "b": [0, 0, 0]}, {"a": 100, "b": 300})
    assert flat.sparsities_for(0.45) == {"a": 0.45, "b": 0.45}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.61803, 0.85])
def test_the_total_is_exact_and_no_bound_is_passed(seed, sparsity):
    rng = np.random.default_rng(seed)
    sizes = {f"{n}": int(size) for n, size in enumerate(rng.integers(3, 4000, size=6))}
    curves = {p: np.cumsum(rng.exponential(size=3)) * rng.uniform(0.1, 10) for p in sizes}
    found = made(curves, sizes)
    shares = found.sparsities_for(sparsity)
    kept = sum(keep_count(size, shares[p]) for p, size in sizes.items())
    assert kept == keep_count(sum(sizes.values()), sparsity)
    assert all(0 <= share <= 0.9 for share in shares.values())
    # Equal increases, to within one weight's worth, where no leaf is at an end.
    inside = {p: share for p, share in shares.items() if round(share * sizes[p]) < int(0.9 * sizes[p])}
    rises = {p: np.interp(share, (0, *LEVELS), (0, *curves[p])) for p, share in inside.items()}
    worth = {p: np.diff((0, *curves[p])).max() / 0.25 / sizes[p] for p in rises}
    if sparsity:
        middle = np.median(list(rises.values()))
        assert all(abs(rise - middle) <= 2 * worth[p] + 2 * max(worth.values()) for p, rise in rises.items())


def test_as_the_allocation_of_prune():
    found = sensitivity(loss, ones(), sparsities=LEVELS, progress=False)
    _, state = prune(0.5, allocation=found.allocation).init(ones())
    kept = {p: int(m.sum()) for p, m in state.masks.items()}
    assert sum(kept.values()) == 20
    assert kept["a"] > kept["b"]
    again = prune(0.5, allocation=found.allocation, select="b").init(ones())[1]
    assert int(again.masks["b"].sum()) == 10


def test_the_table():
    found = made({"layer/kernel": [1, 2.5, 30], "b": [0.1, 0.2, 0.3]}, {"layer/kernel": 12000, "b": 8}, loss=0.5)
    assert str(found).splitlines() == [
        "loss with one leaf pruned (dense: 0.5)",
        "leaf          weights     25 %     50 %     90 %",
        "layer/kernel    12000        1      2.5       30",
        "b                   8      0.1      0.2      0.3",
    ]


def test_what_cannot_be_met_is_refused():
    found = made({"a": [1, 2, 3], "b": [1, 2, 3]}, {"a": 10, "b": 10})
    with pytest.raises(ValueError, match=r"sparsity 0.95 needs leaves sparser than 0.9, the highest measured"):
        found.sparsities_for(0.95)
    with pytest.raises(ValueError, match=r"c: was not measured; those measured are a, b(.|\n)*a: has shape \(11,\)"):
        found.allocation({"c": (3,), "a": (11,)}, 0.5)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        found.sparsities_for(-0.5)
    for levels in ((), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (0.9, 0.5)):
        with pytest.raises(ValueError, match="sparsities must ascend within"):
            sensitivity(loss, ones(), sparsities=levels)


def test_a_loss_that_is_not_finite_is_named():
    broken = lambda p: 1 / (p["a"].sum() - 10)  # noqa: E731
    with pytest.raises(ValueError, match=r"a: got inf at sparsity 0.5"):
        sensitivity(broken, {"a": jnp.ones((4, 5))}, sparsities=(0.25, 0.5), criterion=Magnitude(), progress=False)


def test_only_selected_leaves():
    found = sensitivity(loss, ones(), sparsities=(0.5,), select="b", progress=False)
    assert list(found.curves) == ["b"]
    assert list(paths.select(ones(), "b")) == ["b"]
