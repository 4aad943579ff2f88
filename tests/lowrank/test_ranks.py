"""Rules for ranks against float64 references and exhaustive search."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.lowrank.method import Method
from lepton_jax.lowrank.ranks import Budget, Energy, Evbmf, Fixed, Fraction
from lepton_jax.lowrank.ranks.evbmf import evbmf_rank
from lepton_jax.lowrank.svd import Svd

SHAPES = {"a": (12, 8), "b": (3, 3, 2, 10), "c": (6, 20)}


def with_spectrum(rng: np.random.Generator, shape: tuple[int, ...], values: np.ndarray) -> jnp.ndarray:
    """A weight of given singular values."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    left = np.linalg.qr(rng.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(columns, len(values))))[0]
    return jnp.asarray((left * values) @ right.T, jnp.float32).reshape(shape)


def weights(seed: int) -> dict[str, jnp.ndarray]:
    rng = np.random.default_rng(seed)
    sides = {path: min(math.prod(shape[:-1]), shape[-1]) for path, shape in SHAPES.items()}
    decay = {path: rng.uniform(0.4, 0.95) for path in SHAPES}
    return {p: with_spectrum(rng, SHAPES[p], rng.uniform(0.5, 4) * decay[p] ** np.arange(side)) for p, side in sides.items()}


def tails(tree: dict[str, jnp.ndarray], *, relative: bool) -> dict[str, np.ndarray]:
    """Squared error of every rank from 0, by float64 singular values."""
    found = {}
    for path, weight in tree.items():
        values = np.linalg.svd(np.asarray(weight, np.float64).reshape(-1, weight.shape[-1]), compute_uv=False)
        errors = np.array([np.sum(values[rank:] ** 2) for rank in range(len(values) + 1)])
        found[path] = errors / errors[0] if relative else errors
    return found


# ------------------------------------------------------------------------------------------------------------ the simple rules


def test_energy_is_the_least_rank_that_keeps_it() -> None:
    for seed, energy in itertools.product(range(3), (0.3, 0.9, 0.999)):
        tree = weights(seed)
        ranks = Energy(energy=energy).ranks(tree, Svd())
        for path, errors in tails(tree, relative=True).items():
            assert errors[ranks[path]] <= 1 - energy + 1e-9
            assert ranks[path] == 1 or errors[ranks[path] - 1] > 1 - energy
    assert Energy(energy=1.0).ranks({"w": jnp.eye(5)}, Svd()) == {"w": 5}
    assert Energy(energy=0.5, multiple=4).ranks({"w": jnp.eye(10)}, Svd()) == {"w": 8}
    assert Energy(energy=0.9).ranks({"w": jnp.zeros((4, 4))}, Svd()) == {"w": 1}


def test_stacked_layers_share_a_rank() -> None:
    steep, flat = jnp.diag(jnp.array([10.0, 0.0, 0.0, 0.0])), jnp.eye(4)
    both = {"w": jnp.stack([steep, flat])}
    assert Energy(energy=0.95).ranks(both, Svd(stacked=1)) == {"w": 1}  # 101 of 104
    assert Energy(energy=0.98).ranks(both, Svd(stacked=1)) == {"w": 2}
    assert Evbmf().ranks(both, Svd(stacked=1))["w"] >= 1
    assert Fraction(fraction=0.5).ranks(both, Svd(stacked=1)) == {"w": 2}


def test_fixed_and_fraction() -> None:
    tree = weights(0)
    assert Fixed(rank=9).ranks(tree, Svd()) == {"a": 8, "b": 9, "c": 6}
    assert Fraction(fraction=0.29).ranks({"w": jnp.ones((100, 100))}, Svd()) == {"w": 29}
    assert Fraction(fraction=0.01, multiple=4).ranks(tree, Svd()) == {"a": 4, "b": 4, "c": 4}
    assert Fraction(fraction=1.0, multiple=16).ranks(tree, Svd()) == {"a": 8, "b": 10, "c": 6}


# --------------------------------------------------------------------------------------------------------------------- EVBMF


def reference_evbmf(values: np.ndarray, long: int) -> int:
    """The same minimum by brute force: each component's free energy with and without it, over a fine grid of variances."""
    alpha = len(values) / long
    squares = values.astype(np.float64) ** 2
    best, count = np.inf, 0
    for variance in np.geomspace(squares.min() / long / 4, squares.sum() / (len(values) * long) * 1.001, 20_001):
        x = squares / (long * variance)
        gain = np.zeros_like(x)
        real = x >= (1 + np.sqrt(alpha)) ** 2
        shifted = x[real] - 1 - alpha
        tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0))) / 2
        gain[real] = -tau + np.log(tau + 1) + alpha * np.log(tau / alpha + 1)
        energy = np.sum(x - np.log(x) + np.minimum(gain, 0))
        if energy < best:
            best, count = energy, int(np.sum(gain < 0))
    return count


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"), [(40, 40, 3, 0.3), (60, 25, 5, 0.1), (30, 90, 1, 1.0), (24, 12, 0, 1.0)]
)
def test_evbmf_is_the_least_free_energy(rows: int, columns: int, rank: int, noise: float) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        clean = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
        matrix = clean + noise * rng.normal(size=(rows, columns))
        values = np.linalg.svd(matrix, compute_uv=False)
        expected = reference_evbmf(values, max(rows, columns))
        assert evbmf_rank(values, max(rows, columns)) == expected == rank  # and the planted rank is found
        assert Evbmf().ranks({"w": jnp.asarray(matrix)}, Svd()) == {"w": max(expected, 1)}


def test_evbmf_of_a_decaying_spectrum() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        long = int(rng.integers(20, 60))
        values = np.sort(rng.uniform(0.1, 1, 20) * rng.uniform(0.7, 0.99) ** np.arange(20))[::-1] * 7
        assert evbmf_rank(values, long) == reference_evbmf(values, long)
    assert evbmf_rank(np.zeros(4), 4) == 0
    tree = {"w": jnp.diag(jnp.array([50.0, 40.0, *[1.0] * 8]))}
    assert [Evbmf(weaken=w).ranks(tree, Svd())["w"] for w in (0.0, 0.25, 1.0)] == [2, 4, 10]


# -------------------------------------------------------------------------------------------------------------------- budget


def exhaustive(tree: dict[str, jnp.ndarray], limit: float, *, relative: bool) -> float:
    """The least error of all combinations of ranks, and dense, within the limit."""
    errors = tails(tree, relative=relative)
    layers = []
    for path, shape in SHAPES.items():
        size, sides = math.prod(shape), math.prod(shape[:-1]) + shape[-1]
        options = [(rank * sides, error) for rank, error in enumerate(errors[path]) if rank and rank * sides < size]
        layers.append([*options, (size, 0.0)])
    found = [sum(e for _, e in each) for each in itertools.product(*layers) if sum(c for c, _ in each) <= limit]
    return min(found)


def spent(ranks: dict[str, int], errors: dict[str, np.ndarray]) -> tuple[float, float]:
    sizes = {path: ranks[path] * (math.prod(s[:-1]) + s[-1]) if path in ranks else math.prod(s) for path, s in SHAPES.items()}
    return sum(sizes.values()), sum(errors[path][rank] for path, rank in ranks.items())


@pytest.mark.parametrize("relative", [True, False])
def test_a_budget_is_kept_and_no_uniform_choice_is_better(relative: bool) -> None:
    dense = sum(math.prod(shape) for shape in SHAPES.values())
    for seed in range(4):
        tree = weights(seed)
        errors = tails(tree, relative=relative)
        for share in (0.35, 0.5, 0.7, 0.9):
            ranks = Budget(fraction=share, relative=relative).ranks(tree, Svd())
            cost, error = spent(ranks, errors)
            assert cost <= share * dense
            for part in np.arange(1, 101) / 100:
                even = Fraction(fraction=part).ranks(tree, Svd())
                smaller = {
                    p: r for p, r in even.items() if r * (math.prod(SHAPES[p][:-1]) + SHAPES[p][-1]) < math.prod(SHAPES[p])
                }
                other_cost, other_error = spent(smaller, errors)
                assert other_cost > share * dense or error <= other_error + 1e-9
            best = exhaustive(tree, share * dense, relative=relative)
            assert best - 1e-9 <= error <= 1.1 * best + 1e-9


def test_a_whole_budget_stays_dense() -> None:
    assert Budget(fraction=1.0).ranks(weights(0), Svd()) == {}


def test_a_budget_of_macs_and_of_bytes() -> None:
    tree = {"wide": jnp.eye(16), "often": jnp.eye(16)}
    macs = {"wide": 256.0, "often": 25600.0}
    ranks = Budget(fraction=0.9, of="macs", macs=macs).ranks(tree, Svd())
    assert "wide" not in ranks  # costs next to nothing
    assert ranks["often"] == 7
    assert Budget(total=4 * 512, of="bytes").ranks(tree, Svd()) == {}
    halves = Budget(total=4 * 32 * 8, of="bytes", multiple=4).choose(tree, Svd())
    assert sum(option.cost for option in halves.values()) == 1024
    assert {option.rank for option in halves.values()} == {4}
    narrow = {path: weight.astype(jnp.bfloat16) for path, weight in tree.items()}
    assert Budget(total=2 * 512, of="bytes").ranks(narrow, Svd()) == {}


class Truncated(Svd):
    """A method of which no singular values are known."""

    matrices = Method.matrices


def test_a_method_without_spectra_is_measured() -> None:
    tree = weights(1)
    measured = Budget(fraction=0.6).choose(tree, Truncated())
    known = Budget(fraction=0.6).choose(tree, Svd())
    assert {p: o.rank for p, o in measured.items()} == {p: o.rank for p, o in known.items()}
    for path, option in measured.items():
        np.testing.assert_allclose(option.error, known[path].error, rtol=1e-3, atol=1e-9)
    with pytest.raises(TypeError, match=r"Energy: needs a method(.|\n)*a: Truncated(.|\n)*c: Truncated"):
        Energy(energy=0.5).ranks(tree, Truncated())


# ----------------------------------------------------------------------------------------------------------------- bad input


def test_a_budget_below_the_least_says_what_that_is() -> None:
    with pytest.raises(ValueError, match=r"50 parameters are less than the least, 74, of rank 1 everywhere \(dense 396\)"):
        Budget(total=50).ranks(weights(0), Svd())
    with pytest.raises(ValueError, match=r"no entry(.|\n)*b"):
        Budget(total=50, of="macs", macs={"a": 1.0, "c": 1.0}).ranks(weights(0), Svd())


@pytest.mark.parametrize("rule", [Energy(energy=0.5), Evbmf(), Budget(fraction=0.5)])
def test_no_ranks_inside_jit(rule: object) -> None:
    with pytest.raises(TypeError, match=r"not known inside jit(.|\n)*a: traced. Choose the ranks before"):
        jax.jit(lambda tree: rule.ranks(tree, Svd()))(weights(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(rank=0), "from 1 up; got 0"),
        (lambda: Fraction(fraction=0.0), r"\(0, 1\].*got 0.0"),
        (lambda: Energy(energy=1.5), r"\(0, 1\].*got 1.5"),
        (lambda: Evbmf(weaken=1.5), r"weaken must be in \[0, 1\]; got 1.5"),
        (lambda: Evbmf(multiple=0), "multiple must be a whole number from 1 up"),
        (lambda: Budget(), "either fraction or total"),
        (lambda: Budget(fraction=0.5, total=3), "either fraction or total"),
        (lambda: Budget(total=-1), "total: must be above 0"),
        (lambda: Budget(total=1, of="time"), "of: must be"),
        (lambda: Budget(total=1, of="macs"), "macs: needed"),
    ],
)
def test_settings_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
