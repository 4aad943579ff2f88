"""Structures: whole units, exact counts, errors that name every leaf; and pruning with them over a run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import prune
from lepton_jax.core.schedules import polynomial
from lepton_jax.pruning import (
    Blocks,
    Channels,
    Filters,
    Heads,
    NofM,
    Structure,
    Unstructured,
    block,
    channel,
    keep_count,
    n_of_m,
    top,
)


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def unit_means(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The mean of the scores of each unit, in float64."""
    flat = numbers.reshape(-1)
    return np.bincount(flat, scores.astype(np.float64).reshape(-1)) / np.bincount(flat)


# Structure, shape of a leaf, and what shares a unit: an array of unit numbers.
def _unit_numbers() -> dict[str, tuple[Structure, np.ndarray]]:
    rows, columns = np.indices((6, 8))
    four = np.indices((2, 3, 4, 5))
    return {
        "weights": (Unstructured(), np.arange(48).reshape(6, 8)),
        "blocks": (Blocks(shape=(2, 4)), rows // 2 * 2 + columns // 4),
        "blocks that do not divide": (Blocks(shape=(4, 3)), rows // 4 * 3 + columns // 3),
        "blocks of the last axis": (Blocks(shape=(5,)), rows * 2 + columns // 5),
        "rows": (Channels(axis=0), rows),
        "inputs of a convolution": (Channels(axis=-2), four[2]),
        "kernels of a convolution": (Channels(axis=(2, 3)), four[2] * 5 + four[3]),
        "filters": (Filters(), four[3]),
        "heads with an axis": (Heads(axis=1), four[1]),
        "heads in the last axis": (Heads(axis=-1, width=2), columns // 2),
    }


UNITS = _unit_numbers()


@pytest.mark.parametrize("name", UNITS)
def test_units(name: str) -> None:
    structure, numbers = UNITS[name]
    structure.check({"w": numbers.shape}, 0.5)
    assert not structure.local
    count = numbers.max() + 1
    scores = draw(1, *numbers.shape)
    reduced = structure.reduce(scores)
    means = unit_means(np.asarray(scores), numbers)
    assert reduced.dtype == jnp.float32
    np.testing.assert_allclose(reduced.reshape(-1), means, rtol=1e-5, atol=1e-6)
    mask = np.random.default_rng(2).random(count) < 0.5
    spread = structure.expand(jnp.asarray(mask).reshape(reduced.shape), numbers.shape)
    assert spread.dtype == bool
    np.testing.assert_array_equal(spread, mask[numbers])


@pytest.mark.parametrize("name", UNITS)
def test_units_in_pruning(name: str) -> None:
    """Over a gradual run: whole units, the lowest means first, as many as the rule for counts says; none returns."""
    structure, numbers = UNITS[name]
    count = int(numbers.max()) + 1
    weights = {"drawn": draw(3, *numbers.shape), "equal": jnp.full(numbers.shape, 0.3)}
    transform = prune(polynomial(0.6, begin=0, end=4, power=1), structure=structure)
    params, state = transform.init(weights)
    update = jax.jit(transform.update)
    means = unit_means(np.abs(np.asarray(weights["drawn"])), numbers)
    order = {"drawn": np.argsort(-means, kind="stable"), "equal": np.arange(count)}
    for step in range(6):
        params, state = update(params, state, params, step)
        keep = keep_count(count, round(0.6 * min(step, 4) / 4, 6))
        for path, best in order.items():
            expected = np.isin(numbers, best[:keep])
            np.testing.assert_array_equal(state.masks[path], expected)
            np.testing.assert_array_equal(params[path], np.where(expected, weights[path], 0))


@pytest.mark.parametrize("name", [name for name in UNITS if name != "weights"])
def test_units_under_a_common_threshold(name: str) -> None:
    structure, numbers = UNITS[name]
    count = numbers.max() + 1
    params = {"large": 10 + draw(4, *numbers.shape), "small": draw(5, *numbers.shape)}
    state = prune(0.5, structure=structure, scope="global").init(params)[1]
    assert np.asarray(state.masks["large"]).all()
    sizes = np.abs(np.asarray(params["small"]))
    best = np.argmax([sizes[numbers == unit].mean() for unit in range(count)])  # is left, although below the threshold
    np.testing.assert_array_equal(state.masks["small"], numbers == best)
    state = prune(0.25, structure=structure, scope="global").init(params)[1]
    assert len(np.unique(numbers[np.asarray(state.masks["small"])])) == keep_count(int(2 * count), 0.25) - count


def test_structures_are_the_masks_of_the_same_name() -> None:
    scores = draw(6, 8, 12)
    for structure, expected in [
        (Unstructured(), top(scores, 0.4)),
        (Blocks(shape=(3, 5)), block(scores, 0.4, (3, 5))),
        (Channels(axis=0), channel(scores, 0.4, 0)),
        (Filters(), channel(scores, 0.4, 1)),
        (Heads(axis=1, width=3), block(scores, 0.4, (8, 3))),
    ]:
        np.testing.assert_array_equal(structure.expand(top(structure.reduce(scores), 0.4), scores.shape), expected)
    for structure in (NofM(n=1, m=4), NofM(n=1, m=4, axis=-1, pad=True)):
        np.testing.assert_array_equal(structure.mask(scores, 0.75), n_of_m(scores, 1, 4, structure.axis))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (5, 20), (4, 4)])
@pytest.mark.parametrize("gradient", ["masked", "straight_through"])
def test_n_of_m_over_a_gradual_run(n: int, m: int, gradient: str) -> None:
    target = 1 - n / m
    transform = prune(polynomial(target, begin=0, end=4, power=1), structure=NofM(n=n, m=m), gradient=gradient)
    params, state = transform.init({"w": draw(7, 3 * m, 5), "v": jnp.ones((2, m, 3))})
    update = jax.jit(transform.update)
    for step in range(6):
        params, state = update(params, state, params, step)
        keep = m - int(np.round(np.float32(target * min(step, 4) / 4) * np.float32(m)))
        groups = np.asarray(state.masks["w"]).reshape(3, m, 5)
        assert (groups.sum(1) == keep).all()
        np.testing.assert_array_equal(state.masks["v"], np.broadcast_to(np.arange(m)[None, :, None] < keep, (2, m, 3)))
    assert keep == n


def test_padded_groups_in_pruning() -> None:
    params = {"w": draw(8, 10, 3)}
    mask = np.asarray(prune(0.5, structure=NofM(n=2, m=4, pad=True)).init(params)[1].masks["w"])
    assert [(part.sum(0) == 2).all() for part in (mask[:4], mask[4:8], mask[8:])] == [True] * 3


SHAPES = {"good": (8, 8), "odd": (8, 6, 7), "vector": (6,)}


@pytest.mark.parametrize(
    ("structure", "lines"),
    [
        (
            Blocks(shape=(2, 2, 2)),
            ["good: a block of shape (2, 2, 2) has more axes than scores of shape (8, 8)", "vector: "],
        ),
        (Channels(axis=1), ["vector: axis 1 is none of the 1 axes of shape (6,)"]),
        (Channels(axis=(0, -1)), ["vector: axis must be one axis or several different ones; got (0, -1) for shape (6,)"]),
        (Filters(), ["vector: the number of axes must be a whole number from 2 up; got 1"]),
        (
            Heads(axis=-1, width=4),
            ["odd: heads of width 4 must divide axis -1; shape (8, 6, 7) has 7 entries there", "vector: heads"],
        ),
        (
            NofM(n=2, m=4),
            ["odd: groups of 4 must divide axis -2; shape (8, 6, 7) has 6 entries there", "vector: "],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_leaf_that_does_not_fit_is_named(structure: Structure, lines: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"^{type(structure).__name__}.*:\n") as error:
        structure.check(SHAPES, 0.5)
    found = str(error.value).splitlines()[1:]
    assert [line.strip().split(":")[0] for line in found] == [line.split(":")[0] for line in lines]
    assert all(line in one for line, one in zip(lines, found))
    with pytest.raises(ValueError, match="vector: "):  # before any mask is made
        prune(0.5, structure=structure, select=("*",)).init({path: jnp.ones(shape) for path, shape in SHAPES.items()})


def test_padding_is_a_choice() -> None:
    NofM(n=2, m=4, pad=True).check({"odd": (8, 6, 7), "good": (8, 8)}, 0.5)


def test_everything_wrong_with_n_of_m_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"2/4 = 0.5; got 0.9(.|\n)*\n  odd: groups of 4(.|\n)*\n  vector: axis -2"):
        NofM(n=2, m=4).check(SHAPES, 0.9)


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.75])
def test_n_of_m_says_what_sparsity_it_is(sparsity: float) -> None:
    says = re.escape(f"2 of 4 is a sparsity of 1 - 2/4 = 0.5; got {sparsity}. Write prune(2 / 4, ...), or that as the target")
    with pytest.raises(ValueError, match=says):
        prune(sparsity, structure=NofM(n=2, m=4)).init({"w": jnp.ones((4, 4))})
    for n, m in ((1, 3), (2, 7), (5, 6)):
        NofM(n=n, m=m).check({"w": (m, 2)}, 1 - n / m)
        NofM(n=n, m=m).check({"w": (m, 2)}, (m - n) / m)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NofM(n=5, m=4), "NofM: n must be a whole number from 1 to 4; got 5"),
        (lambda: NofM(n=0, m=4), "NofM: n must be a whole number from 1 to 4; got 0"),
        (lambda: NofM(n=1, m=0), "NofM: m must be a whole number from 1 up; got 0"),
        (lambda: Blocks(shape=(4, 0)), "each size of shape must be a whole number from 1 up; got 0"),
        (lambda: Blocks(shape=()), r"for one axis or more; got \(\). For single weights: Unstructured\(\)"),
        (lambda: Channels(axis=()), r"must name one axis or more; got \(\)"),
        (lambda: Heads(axis=1, width=0), "width must be a whole number from 1 up; got 0"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_structure_without_units_or_a_mask_says_so() -> None:
    for call in (
        lambda s: s.reduce(jnp.ones(2)),
        lambda s: s.expand(jnp.ones(2, bool), (2,)),
        lambda s: s.mask(jnp.ones(2), 0.5),
    ):
        with pytest.raises(TypeError, match="Structure "):
            call(Structure())
    with pytest.raises(TypeError, match="NofM defines no units"):
        NofM(n=1, m=2).reduce(jnp.ones(2))
