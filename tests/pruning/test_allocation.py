"""Allocations: what each leaf loses, against the papers' own iteration in numpy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import prune
from lepton_jax.core.schedules import polynomial
from lepton_jax.pruning import keep_count
from lepton_jax.pruning.allocation import Explicit, erk, uniform

MLP = {"a/kernel": (784, 300), "b/kernel": (300, 100), "c/kernel": (100, 10)}
CNN = {
    "Conv_0/kernel": (3, 3, 3, 16),
    "Conv_1/kernel": (3, 3, 16, 64),
    "Conv_2/kernel": (1, 1, 64, 128),
    "Dense_0/kernel": (512, 64),
    "Dense_1/kernel": (64, 10),
    "Dense_1/bias": (10,),
}
SPARSITIES = [0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99]


def reference(shapes: dict, sparsity: float, power: float, kernel_dims: bool, kept: tuple[str, ...] = ()) -> dict:
    """As Evci et al. publish it: find epsilon, make dense what would be more than dense, start again."""
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    dense = set(kept)
    while True:
        divisor = target = 0.0
        raw = {}
        for path, shape in shapes.items():
            zeros, ones = sparsity * sizes[path], (1 - sparsity) * sizes[path]
            if path in dense:
                target -= zeros
                continue
            dims = shape if kernel_dims else shape[-2:]
            raw[path] = (np.sum(dims) / np.prod(dims)) ** power
            target += ones
            divisor += raw[path] * sizes[path]
        epsilon = target / divisor if raw else 0.0
        over = {path for path, value in raw.items() if value * epsilon > 1 + 1e-12}
        if not over:
            return {path: 0.0 if path in dense else 1 - epsilon * raw[path] for path in shapes}
        dense |= over


def removed(shapes: dict, sparsities: dict) -> float:
    return sum(math.prod(shape) * sparsities[path] for path, shape in shapes.items())


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.999])
def test_uniform(sparsity: float) -> None:
    shapes = {"a/kernel": (3, 4), "b": (5,), "empty": (0, 2)}
    assert uniform(shapes, sparsity) == {"a/kernel": sparsity, "b": sparsity, "empty": sparsity}
    assert list(uniform(shapes, sparsity)) == list(shapes)
    assert uniform({}, sparsity) == {}


def test_erk_by_hand() -> None:
    """Ratios 0.75 and 0.5 of 8 and 16 weights; 6 of 24 are to stay: e = 6 / (0.75 * 8 + 0.5 * 16) = 3 / 7."""
    assert erk({"a": (2, 4), "b": (4, 4)}, 0.75) == pytest.approx({"a": 1 - 9 / 28, "b": 1 - 3 / 14}, rel=1e-12)
    # At 0.25, e = 18 / 14 and b would be 9/14 dense, a 27/28; at 0.2 a would be more than dense: then b keeps 19.2 - 8 of 16.
    assert erk({"a": (2, 4), "b": (4, 4)}, 0.25) == pytest.approx({"a": 1 / 28, "b": 5 / 14}, rel=1e-12)
    assert erk({"a": (2, 4), "b": (4, 4)}, 0.2) == pytest.approx({"a": 0.0, "b": 0.3}, rel=1e-12)
    # A kernel of 3x3: (3 + 3 + 2 + 4) / 72 with its dims, (2 + 4) / 8 without.
    assert erk({"conv": (3, 3, 2, 4), "b": (4, 4)}, 0.75) == pytest.approx({"conv": 1 - 11 / 60, "b": 1 - 0.55}, rel=1e-12)
    assert erk({"conv": (3, 3, 2, 4), "b": (4, 4)}, 0.75, kernel_dims=False) == pytest.approx(
        {"conv": 1 - 0.75 * 22 / 62, "b": 1 - 0.5 * 22 / 62}, rel=1e-12
    )


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel_dims", [True, False])
@pytest.mark.parametrize("shapes", [MLP, CNN], ids=["mlp", "cnn"])
def test_erk_is_the_paper_s_iteration(shapes: dict, sparsity: float, power: float, kernel_dims: bool) -> None:
    given = erk(shapes, sparsity, power, kernel_dims=kernel_dims)
    assert list(given) == list(shapes)
    assert all(type(value) is float and 0 <= value < 1 for value in given.values())
    expected = reference(shapes, sparsity, power, kernel_dims)
    np.testing.assert_allclose(list(given.values()), list(expected.values()), rtol=1e-9, atol=1e-12)
    total = sum(math.prod(shape) for shape in shapes.values())
    assert removed(shapes, given) == pytest.approx(sparsity * total, rel=1e-9, abs=1e-6)
    counted = sum(math.prod(shape) - keep_count(math.prod(shape), given[path]) for path, shape in shapes.items())
    assert abs(counted - sparsity * total) <= len(shapes) / 2 + 1e-6
    if power == 0:
        np.testing.assert_allclose(list(given.values()), sparsity, rtol=1e-9)


def test_erk_of_random_shapes() -> None:
    draw = np.random.default_rng(0)
    for _ in range(100):
        shapes = {str(i): tuple(draw.integers(1, 40, size=draw.integers(1, 5)).tolist()) for i in range(draw.integers(1, 8))}
        sparsity, power = draw.uniform(0, 0.99), draw.uniform(0, 2)
        given = erk(shapes, sparsity, power)
        expected = reference(shapes, sparsity, power, True)
        np.testing.assert_allclose(list(given.values()), list(expected.values()), rtol=1e-8, atol=1e-10)


def test_leaves_without_axes_or_elements() -> None:
    shapes = {"empty": (0, 3), "scalar": (), "a": (8, 8)}
    given = erk(shapes, 0.5)
    assert (given["empty"], given["scalar"]) == (0.0, 0.0)
    assert given["a"] == pytest.approx(0.5 * 65 / 64)
    assert erk({}, 0.5) == {}
    assert erk({"empty": (0, 3)}, 0.5) == {"empty": 0.0}


@pytest.mark.parametrize("allocate", [uniform, erk], ids=["uniform", "erk"])
def test_what_is_kept_dense_is_made_up_for(allocate) -> None:
    total = sum(math.prod(shape) for shape in CNN.values())
    for dense, kept in (("Conv_0/*", ["Conv_0/kernel"]), (("Conv_0/kernel", "Dense_1/*"), ["Conv_0/kernel", *list(CNN)[-2:]])):
        for sparsity in (0.0, 0.5, 0.9):
            given = allocate(CNN, sparsity, dense=dense)
            assert list(given) == list(CNN)
            assert all(given[path] == 0 for path in kept)
            assert removed(CNN, given) == pytest.approx(sparsity * total, rel=1e-9)
    expected = reference(CNN, 0.9, 0.0 if allocate is uniform else 1.0, True, tuple(kept))
    np.testing.assert_allclose(list(given.values()), list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize("allocate", [uniform, erk, partial(erk, dense="Conv_0/*", power=0.7)], ids=["uniform", "erk", "dense"])
def test_a_traced_sparsity(allocate) -> None:
    sparsities = jnp.array(SPARSITIES, jnp.float32)
    swept = jax.jit(jax.vmap(partial(allocate, CNN)))(sparsities)
    for row, sparsity in enumerate(SPARSITIES):
        for path, value in allocate(CNN, sparsity).items():
            assert float(swept[path][row]) == pytest.approx(value, rel=1e-5, abs=2e-6)


def test_explicit() -> None:
    shapes = {"a/kernel": (4, 5), "b/kernel": (10, 2), "b/bias": (10,)}
    allocate = Explicit(sparsities={"a/*": 0.5, "b/bias": 0.0, "b/*": 0.75})
    assert allocate(shapes, 0.5) == {"a/kernel": 0.5, "b/kernel": 0.75, "b/bias": 0.0}
    assert list(allocate(shapes, 0.5)) == list(shapes)
    assert jax.jit(lambda s: allocate(shapes, s)["b/kernel"])(0.5) == 0.75


@pytest.mark.parametrize(
    "allocation",
    [
        erk,
        partial(erk, power=0.5, dense="b"),
        partial(uniform, dense="b"),
        Explicit(sparsities={"a": 0.7, "b": 0.1, "c": 0.355}),
    ],
    ids=["erk", "erk dense", "uniform dense", "Explicit"],
)
def test_in_pruning(allocation) -> None:
    draw = np.random.default_rng(1).normal
    shapes = {"a": (20, 20), "b": (20, 5), "c": (100, 4)}
    params = {path: jnp.asarray(draw(size=shape), jnp.float32) for path, shape in shapes.items()}
    goals = allocation(shapes, 0.48)
    transform = prune(polynomial(0.48, begin=0, end=2), allocation=allocation)
    params, state = transform.init(params)
    params, state = transform.update(params, state, params, 2)
    assert {path: int(mask.sum()) for path, mask in state.masks.items()} == {
        path: keep_count(leaf.size, goals[path]) for path, leaf in params.items()
    }
    assert len(set(goals.values())) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform(MLP, 1.0), r"sparsity must be in \[0, 1\)"),
        (lambda: erk(MLP, 1.5), r"sparsity must be in \[0, 1\)"),
        (lambda: erk(MLP, 0.5, power=-1), "power must be 0 or more; got -1"),
        (
            lambda: erk(MLP, 0.5, dense="d/*"),
            r"'d/\*' matches no leaf; the leaves are: a/kernel, b/kernel, c/kernel",
        ),
        (
            lambda: uniform(MLP, 0.9, dense="a/*"),
            "only 31000 of 266200 weights.*asks for 239580.*less than 0.116454",
        ),
        (lambda: erk(MLP, 0.5, dense="*"), "only 0 of 266200 weights can be removed"),
        (lambda: Explicit(sparsities={"a": 1.0}), r"sparsities\['a'\] must be in \[0, 1\)"),
        (lambda: Explicit(sparsities={"a/*": 0.5})(MLP, 0.5), r"b/kernel: no pattern matches it\n  c/kernel: no pattern"),
        (
            lambda: Explicit(sparsities={"*": 0.5, "d/*": 0.5})(MLP, 0.5),
            r"pattern 'd/\*' gives no leaf its sparsity; leaves: a",
        ),
        (lambda: Explicit(sparsities={"*": 0.5, "a/*": 0.5})(MLP, 0.5), r"pattern 'a/\*' gives no leaf"),
        (
            lambda: Explicit(sparsities={"a/*": 0.5, "*": 0.25})(MLP, 0.5),
            r"remove a fraction of 0.470887 in all; the sparsity asked for is 0.5. Write prune\(0.470887",
        ),
    ],
)
def test_bad_settings(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
