"""Every transform under every wrapper keeps what it promises, and every wrapper hands every part on."""

import inspect
import itertools
import types
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_rows import SINGLES, TRANSFORMS, WRAPPERS, Wrapped, weights
from test_contract import modules, public

from lepton_jax import Transform, chain, fake_quant, freeze, prune, unpack
from lepton_jax.core import paths
from lepton_jax.core.transform import hold
from lepton_jax.pruning.sparse_training import fixed_masks, masks_of
from lepton_jax.quantization import delayed

ALIVE = {"prune-straight_through", "fixed_masks-straight_through"}
"""Masters of hidden weights live on: that is what they promise."""
MASKED = [
    "prune-erk",
    "prune-straight_through",
    "fixed_masks-masked",
    "fixed_masks-straight_through",
    "set_",
    "rigl",
    "rigl-affine3",
    "dynamic_surgery",
    "ac_dc",
    "lsq-prune",
]
OTHERS = [
    next(f"{name}-{row}".strip("-") for row in rows) for name, rows in TRANSFORMS.items() if name not in ("prune", *WRAPPERS)
]
ROWS = sorted({*MASKED, *OTHERS})
KEEPS_THE_TREE = ("prune", "fake_quant", "lsq", "dorefa", "stochastic", "scheduled", "fixed", "set", "rigl", "dynamic", "ac_dc")
NESTINGS = [
    ("freeze",),
    ("freeze", "freeze"),
    *itertools.permutations(WRAPPERS, 2),
    ("freeze", "by_part", "chain"),
    ("chain", "by_part", "freeze"),
]
FROZEN = [names for names in NESTINGS if "freeze" in names]
COMBINED = [
    (name, names)
    for name in ROWS
    for names in (FROZEN if name in MASKED else [("freeze",), *itertools.product(("freeze",), WRAPPERS)])
    if "delayed" not in names or name.startswith(KEEPS_THE_TREE)
]


def wrapped(inner: Wrapped, names: tuple[str, ...]) -> Wrapped:
    """Wrap it in the first of the names outermost."""
    for name in reversed(names):
        inner = WRAPPERS[name](inner)
    return inner


@cache
def begun(name: str) -> Wrapped:
    """After an update, so that masks that come with a schedule are there."""
    transform = SINGLES[name]
    params, state = transform.init(weights())
    params, state = jax.jit(transform.update)(params, state, jax.tree.map(jnp.ones_like, params), 7)
    return Wrapped(transform, state, params)


def same(one: object, other: object) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and (a is b or np.asarray(a).tobytes() == np.asarray(b).tobytes()) for a, b in pairs)


def test_every_wrapper_has_a_row() -> None:
    def takes_transforms(function: types.FunctionType) -> bool:
        signature = inspect.signature(function)
        returned = signature.return_annotation in (Transform, "Transform")
        return returned and any("Transform" in str(p.annotation) for p in signature.parameters.values())

    found = {name for m in modules() for name, f in public(m, types.FunctionType).items() if takes_transforms(f)}
    assert found == WRAPPERS.keys()


@pytest.mark.parametrize(("name", "names"), COMBINED, ids=[f"{name}-{'>'.join(names)}" for name, names in COMBINED])
def test_what_is_frozen_keeps_its_masters_and_its_state(name: str, names: tuple[str, ...]) -> None:
    """Momentum goes on, and weights decay: what is masked stays at exactly 0, and the view is what is packed."""
    transform, state, params = wrapped(begun(name), names)
    for tx in (optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.1)):
        after, moments = params, tx.init(params)
        for number in (8, 9):
            grads = jax.tree.map(jnp.ones_like, params)
            updates, moments = tx.update(grads, moments, after)
            moved = optax.apply_updates(after, updates)
            after, kept = transform.update(moved, state, grads, number)
            assert same(kept, state)
        leaves, drifted = paths.flatten(after), paths.flatten(moved)
        for path, mask in masks_of(state).items():
            path = next(p for p in leaves if p in (path, f"net/{path}"))
            hidden = np.asarray(leaves[path])[~np.asarray(mask)]
            assert hidden.size, path
            if name in ALIVE:
                np.testing.assert_array_equal(hidden, np.asarray(drifted[path])[~np.asarray(mask)])
            else:
                assert not hidden.any(), path
    assert same(unpack(transform.pack(after, state)), transform.view(after, state))


def test_frozen_ranks_stay_reduced() -> None:
    transform, state, params = wrapped(begun("reduce_rank-half"), ("freeze", "by_part", "chain"))
    moved = jax.tree.map(lambda w: w + 1, params)
    leaf = transform.update(moved, state, moved, 9)[0]["net"]["a"]["kernel"]
    gone = ~np.asarray(state["net"][0].columns["a/kernel"])
    assert gone.any()
    assert not np.asarray(leaf.u)[:, gone].any()
    assert not np.asarray(leaf.v)[gone].any()


@pytest.mark.parametrize("names", [("by_part", "chain"), ("chain", "by_part")], ids=">".join)
@pytest.mark.parametrize("name", [name for name in MASKED if name not in (*ALIVE, "dynamic_surgery")])
def test_masters_that_train_stay_masked_and_updates_are_traced_once(name: str, names: tuple[str, ...]) -> None:
    transform, state, params = wrapped(begun(name), names)
    tx, traces = optax.chain(optax.trace(0.9), optax.adamw(0.1, weight_decay=0.1)), []

    @jax.jit
    def step(params: dict, state: object, moments: object, number: jax.Array) -> tuple:
        traces.append(number)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, moments = tx.update(grads, moments, params)
        return *transform.update(optax.apply_updates(params, updates), state, grads, number), moments

    moments = tx.init(params)
    for number in range(7, 10):
        params, state, moments = step(params, state, moments, jnp.int32(number))
        leaves = paths.flatten(params)
        for path, mask in masks_of(state).items():
            path = next(p for p in leaves if p in (path, f"net/{path}"))
            assert not np.asarray(leaves[path])[~np.asarray(mask)].any()
    assert len(traces) == 1


@pytest.mark.parametrize("names", NESTINGS, ids=">".join)
def test_every_part_is_handed_on(names: tuple[str, ...]) -> None:
    """A transform that says which of its parts was asked."""

    def seen(factor: float):
        return lambda params, state: jax.tree.map(lambda w: w * factor, params)

    def moved(factor: float):
        return lambda params, state, grads, step: (jax.tree.map(lambda w: w * factor, params), state)

    inner = Transform(lambda params: (params, ()), seen(2), moved(3), seen(5), seen(7), moved(11))
    transform, state, params = wrapped(Wrapped(inner, (), {"w": jnp.ones((1, 2))}), names)

    def value(tree: dict) -> float:
        return float(jax.tree.leaves(tree.get("net", tree))[0][0, 0])

    # `delayed` shows whole weights: the view of what is inside; the view of a chain, as `gathered` is, is that of its leaves.
    inside = names[names.index("delayed") :] if "delayed" in names else names
    chained = not {"chain", "gathered"}.isdisjoint(inside)
    assert value(transform.pack(params, state)) == 5
    assert value(transform.view(params, state)) == (7 if chained else 2)
    assert value(transform.view_leaves(params, state)) == (7 if "delayed" not in names or chained else 2)
    assert value(transform.update(params, state, params, 0)[0]) == (11 if "freeze" in names else 3)
    assert value(transform.frozen_update(params, state, params, 0)[0]) == 11


def test_another_view_is_what_is_packed() -> None:
    halve = Transform(lambda params: (params, ()), lambda params, state: params / 2, hold)
    double = halve._replace(view=lambda params, state: params * 2)
    assert (double.view(1.0, ()), double.pack(1.0, ()), double.view_leaves(1.0, ())) == (2.0, 2.0, 2.0)
    again = double._replace(init=lambda params: (params, 1))
    assert again.init(0.0)[1] == 1
    assert again.pack is double.pack
    assert prune(0.5)._replace(update=hold).update is hold


def test_a_transform_shows_its_recipe() -> None:
    found = {
        "chain(prune(0.75), fake_quant(bits=4))": chain(prune(0.75), fake_quant(bits=4)),
        "freeze(prune(0.5), PruneState(...))": freeze(prune(0.5), prune(0.5).init({"w": jnp.ones((2, 2))})[1]),
        "fixed_masks({'w': bool[2,3]})": fixed_masks({"w": np.ones((2, 3), bool)}),
        "by_part({'a': fake_quant(bits=4), 'b': low_rank(2)})": SINGLES["by_part-both"],
        "rigl(0.6, key<fry>[], end=8, interval=2)": SINGLES["rigl"],
        "prune(0.5, structure=NofM(n=1, m=2))": next(t for n, t in SINGLES.items() if n.startswith("prune-NofM(n=1, m=2")),
        "cast(bfloat16)": SINGLES["cast-bfloat16"],
        "delayed(lsq(4), 3)": SINGLES["delayed-lsq"],
    }
    assert {repr(transform): transform for transform in found.values()} == found
    assert repr(Transform(weights, same, hold)) == "Transform(weights, same, hold)"
    for name, transform in SINGLES.items():
        assert len(repr(transform)) < 300, name
        assert "0x" not in repr(transform), name


def test_a_transform_is_a_static_argument_and_a_tree_of_functions() -> None:
    transform = prune(0.5)
    params, state = transform.init({"w": jnp.ones((2, 2))})
    view = jax.jit(lambda t, p, s: t.view(p, s), static_argnums=0)
    assert same(view(transform, params, state), transform.view(params, state))
    leaves, structure = jax.tree.flatten(transform)
    assert jax.tree.unflatten(structure, leaves) == transform
    assert hash(transform) == hash(Transform(*transform))
    assert delayed(transform, 1).init(params)[1].on.dtype == bool
