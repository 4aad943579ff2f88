"""The contract of every method. What is found in the package and missing from the tables of `contract_rows` is an error.

To add a method: write its file, then its row there.
"""

import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
import types
import typing
from functools import cache
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract_rows import (
    ALL,
    ALLOCATIONS,
    BATCH,
    CALIBRATIONS,
    CRITERIA,
    FACTORIZATIONS,
    FORMATS,
    KINDS,
    LEAVES,
    PAIRS,
    QUANTIZERS,
    REFUSED,
    SCHEDULES,
    SINGLES,
    STRUCTURES,
    TRANSFORMS,
    TRIPLES,
    UNIFORM_FORMATS,
    draw,
    loss,
    weights,
)
from flax import nnx

import lepton_jax
from lepton_jax import ArtifactError, Transform, chain, fake_quant, graph, load, pack, save, unpack
from lepton_jax.core import paths, schedules
from lepton_jax.core.packed import Coded, Composite, Packed, dense, is_packed
from lepton_jax.core.packed import kinds as packed_kinds
from lepton_jax.leaves import QArray, Ready
from lepton_jax.lowrank import Method, TrainMatrixSvd
from lepton_jax.lowrank.method import Refused
from lepton_jax.lowrank.svd import TwoFactors
from lepton_jax.lowrank.tensor_train import Chain
from lepton_jax.native import packed
from lepton_jax.pruning import NofM, PruneState, Structure, Unstructured, allocation, keep_count
from lepton_jax.pruning.criteria import Criterion
from lepton_jax.pruning.criteria.base import Gathered
from lepton_jax.pruning.sparse_training import masks_of
from lepton_jax.pruning.structures.base import Blockwise
from lepton_jax.quantization import (
    ActivationQuantizer,
    Codebook,
    Dynamic,
    Format,
    MinMax,
    Uniform,
    dequantize,
    fake,
    quantize,
)

# -------------------------------------------------------------------------------------------------------- nothing is missing


@cache
def modules() -> tuple[types.ModuleType, ...]:
    found = pkgutil.walk_packages(lepton_jax.__path__, "lepton_jax.")
    return tuple(importlib.import_module(module.name) for module in found)


def public(module: types.ModuleType, kind: type | tuple[type, ...]) -> dict[str, object]:
    members = vars(module).items()
    return {n: x for n, x in members if isinstance(x, kind) and not n.startswith("_") and x.__module__ == module.__name__}


def subclasses(cls: type) -> set[type]:
    below = {c for c in cls.__subclasses__() if c.__module__.startswith("lepton_jax.")}
    return below.union(*(subclasses(c) for c in below))


def test_every_transform_has_a_row() -> None:
    found = {
        name
        for module in modules()
        for name, function in public(module, types.FunctionType).items()
        if inspect.signature(function).return_annotation in (Transform, "Transform", "transform.Transform")
    }
    # What several share: they take what makes it one of them; and a recipe's chain of those that have rows.
    found -= {"adapter", "on_weights", "rewiring", "through_masks", "wrapper", "transform_of"}
    assert found >= {"prune", "fake_quant", "low_rank", "cast", "chain"}
    assert found == TRANSFORMS.keys()


def test_every_criterion_structure_calibration_allocation_and_schedule_has_a_row() -> None:
    modules()
    assert subclasses(Criterion) - {Gathered} == CRITERIA.keys()
    assert subclasses(Structure) - {Blockwise} == STRUCTURES.keys()
    types_ = itertools.chain(*(public(module, type).values() for module in modules()))
    calibrations = {
        c for c in types_ if hasattr(c, "observe") and hasattr(c, "range") and not getattr(c, "_is_protocol", False)
    }
    assert calibrations == CALIBRATIONS.keys()
    assert public(allocation, (types.FunctionType, type)).keys() == ALLOCATIONS.keys()
    assert {c for c in public(schedules, type).values() if not getattr(c, "_is_protocol", False)} == SCHEDULES.keys()


def test_every_quantizer_of_activations_has_a_row() -> None:
    found = {c for c in itertools.chain(*(public(module, type).values() for module in modules())) if hasattr(c, "quantized")}
    assert {c for c in found if not getattr(c, "_is_protocol", False)} == QUANTIZERS.keys()


def test_every_packed_leaf_has_a_row() -> None:
    modules()
    found = {kind for kind in packed_kinds() if kind.__module__.startswith("lepton_jax.leaves.")}
    found = {kind for kind in found if dataclasses.is_dataclass(kind)}  # no base of several
    assert found == LEAVES.keys()
    assert len({kind.__module__ for kind in found}) == len(found), "one leaf a file"


def test_every_factorization_has_a_row() -> None:
    bases = {Refused, TwoFactors, Chain}  # no factorizations themselves
    assert subclasses(Method) - bases == FACTORIZATIONS.keys()


def test_every_number_format_has_a_row() -> None:
    annotation = typing.get_type_hints(fake_quant)["format"]
    short = {type(None), int, str}  # no format, the bits of a uniform one, and a short name
    assert set(typing.get_args(annotation)) - short == {Format, Codebook}
    assert subclasses(Format) | {Codebook} == FORMATS.keys()


# ------------------------------------------------------------------------------------------------------------------- helpers


def assert_same(actual: object, expected: object) -> None:
    """Same structure, dtypes, shapes and bytes (so -0 is not 0)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(paths.flatten(actual).items(), jax.tree.leaves(expected)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def prune_states(state: object) -> list[PruneState]:
    found = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, PruneState))
    return [s for s in found if isinstance(s, PruneState)]


def assert_counts(row: str, pruned: PruneState) -> None:
    """Exactly as many are kept as the rule says: whole units of a structure, so many of each group, each leaf by its own."""
    structure = {repr(s): s for s in itertools.chain(*STRUCTURES.values())}.get(row, Unstructured())
    target = round(float(pruned.sparsity), 6)
    if isinstance(structure, NofM):
        for mask in pruned.masks.values():
            last = np.moveaxis(np.asarray(mask), structure.axis, -1)
            for start in range(0, last.shape[-1], structure.m):
                group = last[..., start : start + structure.m]
                assert (group.sum(-1) == min(keep_count(structure.m, target), group.shape[-1])).all()
        return
    units = {path: np.asarray(structure.reduce(mask.astype(jnp.float32))) for path, mask in pruned.masks.items()}
    assert all(np.isin(unit, (0, 1)).all() for unit in units.values()), "units are whole"
    kept, sizes = {path: int(unit.sum()) for path, unit in units.items()}, {path: unit.size for path, unit in units.items()}
    if row in ALLOCATIONS:
        goals = ALLOCATIONS[row]({path: mask.shape for path, mask in pruned.masks.items()}, target)
        assert kept == {path: keep_count(size, goals[path]) for path, size in sizes.items()}
    elif sum(kept.values()) != keep_count(sum(sizes.values()), target):  # one threshold for all
        assert kept == {path: keep_count(size, target) for path, size in sizes.items()}


def assert_sound(name: str, params: object, state: object) -> None:
    """What holds of a view at any time."""
    transform = ALL[name]
    seen = transform.view(params, state)
    assert jax.tree.structure(seen) == jax.tree.structure(weights())
    assert [x.shape for x in jax.tree.leaves(seen)] == [x.shape for x in jax.tree.leaves(weights())]
    if "cast" not in name:
        assert {x.dtype for x in jax.tree.leaves(seen)} == {jnp.dtype(jnp.float32)}
    assert_same(jax.jit(transform.view)(params, state), seen)
    assert_same(unpack(pack(transform, params, state)), seen)

    # Exact sparsity; and what is pruned is exactly zero, whatever comes after (a low-rank view takes the weight's place).
    shown = paths.flatten(transform.view_leaves(params, state))
    for pruned in prune_states(state):
        assert_counts(name.removeprefix("prune-"), pruned)
    for path, mask in masks_of(state).items():
        assert path not in shown or not np.asarray(shown[path])[~np.asarray(mask)].any()

    # Idempotent: what is shown, shown again, is the same. Two roundings to different grids are not, by their nature; nor is one
    # that finds its range anew where the ends of a range are no levels.
    anew = not name.startswith("lsq") and any(map(_has_no_level_at_its_ends, quantized(pack(transform, params, state))))
    roundings = sum(kind in name for kind in ("int4", "affine3", "cast"))
    roundings += 2 * ("TwiceMean" in name)  # a mean of what was rounded is another one
    squashed = name.startswith("dorefa")  # by tanh, and by more the second time
    if roundings <= 1 and not squashed and not anew and jax.tree.structure(params) == jax.tree.structure(seen):
        again = transform.view(seen, state)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(seen)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.asarray(a) == 0, np.asarray(b) == 0)
            np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- one run for each


def quantized(tree: object) -> list[QArray]:
    """All leaves in a number format, also those within others."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, QArray))
    return [leaf for leaf in leaves if isinstance(leaf, QArray)]


def _has_no_level_at_its_ends(leaf: QArray) -> bool:
    return isinstance(leaf.format, Uniform) and leaf.format.steps % 1 != 0


@pytest.mark.parametrize("name", SINGLES | TRIPLES)
def test_run(name: str, quick: dict) -> None:
    transform, traces, tx = ALL[name], [], optax.adam(0.02)

    def step(carry: tuple, number: jax.Array) -> tuple:
        traces.append(number)
        params, state, moments = carry
        value, grads = jax.value_and_grad(lambda p: loss(transform.view(p, state), BATCH))(params)
        updates, moments = tx.update(grads, moments, params)
        params, state = transform.update(optax.apply_updates(params, updates), state, grads, number)
        return (params, state, moments), value, grads

    # What it leads to is compared to the last bit, not the way there.
    step = jax.jit(step, donate_argnums=0, compiler_options=quick)
    params, state = transform.init(weights())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params)), "masters are float32"
    carry = (params, state, tx.init(params))
    for number in range(10):
        carry, value, grads = step(carry, jnp.int32(number))
        finite = [bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((value, grads))]
        assert all(finite)
        assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads))
    assert len(traces) == 1

    assert_sound(name, carry[0], carry[1])


@pytest.mark.parametrize("name", PAIRS)
def test_pair(name: str) -> None:
    assert_sound(name, *PAIRS[name].init(weights()))


@pytest.mark.parametrize("names", sorted(REFUSED), ids=">".join)
def test_a_leaf_is_re_parametrised_once(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"re-parametrise(.|\n)*a/kernel(.|\n)*b/kernel"):
        chain(*(KINDS[name] for name in names)).init(weights())


# ------------------------------------------------------------------------------------------------------------ what else holds


@pytest.mark.parametrize("name", [name for name in KINDS if name != "cast"])
def test_narrow_masters_keep_their_dtype(name: str) -> None:
    params, state = KINDS[name].init(weights(dtype=jnp.bfloat16))
    seen = KINDS[name].view(params, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(unpack(pack(KINDS[name], params, state)), seen)


LEAKLESS = ["fixed_masks-masked", "fixed_masks-straight_through", "set_", "rigl-affine3", "dynamic_surgery"]


@pytest.mark.parametrize("name", ["prune", "regrow", "prune>int4", "regrow>affine3", "prune>int4>cast", *LEAKLESS])
def test_what_is_masked_never_leaks(name: str, quick: dict) -> None:
    transform = (KINDS | ALL)[name]
    params, state = transform.init(weights())
    slope = jax.jit(jax.grad(lambda p: loss(transform.view(p, state), BATCH)), compiler_options=quick)
    seen, slopes, leaves = transform.view(params, state), slope(params), paths.flatten(params)
    for bad in (np.nan, np.inf, -np.inf):
        poison = {path: jnp.where(mask, leaves[path], bad) for path, mask in masks_of(state).items()}
        poisoned = paths.replace(params, poison)
        assert_same(transform.view(poisoned, state), seen)
        assert_same(unpack(pack(transform, poisoned, state)), seen)
        assert_same(slope(poisoned), slopes)


@pytest.mark.parametrize("name", KINDS)
def test_vmap_over_seeds_is_separate_runs(name: str, quick: dict) -> None:
    transform = KINDS[name]

    def run(params: dict) -> tuple:
        params, state = transform.init(params)
        first = transform.view(params, state)
        params = jax.tree.map(lambda w: w * 0.9 + 0.01, params)
        params, state = transform.update(params, state, jax.tree.map(jnp.ones_like, params), 5)
        return first, transform.view(params, state), state

    separate = [run(weights(seed)) for seed in range(3)]
    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(weights(seed) for seed in range(3)))
    stacked = jax.jit(jax.vmap(run), compiler_options=quick)(seeds)
    for seed, one in enumerate(separate):
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(one), strict=True):
            assert (a[seed].dtype, a[seed].shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(np.asarray(a[seed], np.float32), np.asarray(b, np.float32), rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))


def _containers() -> dict[str, object]:
    first, second = weights()["a"]["kernel"], weights()["b"]["kernel"]
    linen = Net().init(jax.random.key(0), BATCH)["params"]
    network = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1)))
    state = nnx.split(network, nnx.Param)[1]
    several = tuple(first + number for number in range(12))  # '10' sorts before '2'
    return {"linen": linen, "nnx": state, "tuple": several, "list": [first, {"deep": [second]}], "array": first}


@pytest.mark.parametrize("kind", ["prune>codebook", "low_rank>prune>int4"])
@pytest.mark.parametrize("container", ["linen", "nnx", "tuple", "list", "array"])
def test_any_container(container: str, kind: str) -> None:
    params = _containers()[container]
    transform = ALL[kind]
    masters, state = transform.init(params)
    seen = transform.view(masters, state)
    assert jax.tree.structure(seen) == jax.tree.structure(params)
    assert [x.shape for x in jax.tree.leaves(seen)] == [x.shape for x in jax.tree.leaves(params)]
    assert_same(jax.jit(transform.view)(masters, state), seen)
    assert_same(unpack(pack(transform, masters, state)), seen)
    new, state = jax.jit(transform.update)(masters, state, masters, 1)
    assert jax.tree.structure(new) == jax.tree.structure(masters)
    assert_same(transform.view(new, state), seen)  # nothing moved, so nothing changes


@pytest.mark.parametrize("fmt", UNIFORM_FORMATS, ids=repr)
def test_quantize_of_dequantized_is_a_fixpoint(fmt: Uniform) -> None:
    """With a range of its own, if both ends of a range are levels; with the range of the first time in any case."""
    x = weights(3)["a"]["kernel"]
    once = quantize(x, fmt)
    assert_same(fake(dequantize(once), fmt, once.scale, once.zero_point), once.unpack())
    twice = once.retrained(once.trained()) if fmt.steps % 1 else quantize(dequantize(once), fmt)
    assert_same(twice.qvalue, once.qvalue)
    assert_same(twice.zero_point, once.zero_point)
    np.testing.assert_allclose(twice.scale, once.scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["int4", "affine3", "codebook"])
def test_quantizers_pack_every_selected_leaf(name: str) -> None:
    params, state = KINDS[name].init(weights())
    tree = pack(KINDS[name], params, state)
    assert is_packed(tree["a"]["kernel"])
    assert is_packed(tree["b"]["kernel"])
    assert not is_packed(tree["a"]["bias"])


@pytest.mark.parametrize("quantizer", [one for rows in QUANTIZERS.values() for one in rows], ids=repr)
def test_quantizers_of_activations(quantizer: ActivationQuantizer) -> None:
    """Its codes are read back as what it shows; jit changes nothing; derivatives are finite; what it shows stays as it is."""
    x = jnp.asarray(np.random.default_rng(11).normal(size=(6, 4)), jnp.float32)
    axes = {axis for axis in range(2) if getattr(quantizer.format, "channel_axis", None) != axis}
    low, high = MinMax()(x, tuple(axes))
    site = quantizer.init(low, high)
    shown = quantizer(x, site)
    assert_same(jax.jit(quantizer)(x, site), shown)
    assert quantizer(x.astype(jnp.bfloat16), site).dtype == jnp.bfloat16
    codes = quantizer.quantized(x, site)
    assert_same((codes.dense() if hasattr(codes, "dense") else codes.unpack()) + 0.0, shown + 0.0)
    grads = jax.grad(lambda x, site: jnp.sum(quantizer(x, site) ** 2), (0, 1))(x, site)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))
    if not (isinstance(quantizer, Dynamic) and quantizer.format.steps % 1):  # a range found anew, whose ends are no levels
        np.testing.assert_allclose(quantizer(shown, site), shown, rtol=1e-6)


@pytest.mark.parametrize("method", [*itertools.chain(*FACTORIZATIONS.values())], ids=lambda method: repr(method)[:60])
def test_factorizations(method: Method, quick: dict) -> None:
    """The highest rank is exact; parameters are as many as counted; jit changes nothing; shape and dtype are kept."""
    method = method.at("w")
    layer = (6, 4) if isinstance(method, TrainMatrixSvd) else (6, 2, 3, 4)
    shape = (2,) * method.stacked + layer
    weight = jnp.asarray(np.random.default_rng(12).normal(size=shape), jnp.float32)
    assert method.refusal(shape) is None
    assert method.refusal((3,)) is not None
    highest = method.max_rank(shape)
    for rank in (1, highest):
        leaf = method.factorize(weight, rank)
        assert (leaf.shape, leaf.dtype) == (shape, weight.dtype)
        assert sum(part.size for part in jax.tree.leaves(leaf)) == method.parameters(shape, rank)
        compiled = jax.jit(method.factorize, static_argnums=1, compiler_options=quick)(weight, rank)
        assert jax.tree.structure(compiled) == jax.tree.structure(leaf)
        np.testing.assert_allclose(unpack(compiled), unpack(leaf), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(unpack(leaf), weight, rtol=1e-5, atol=1e-5)
    matrices = method.matrices(weight)
    tops = (highest,) if isinstance(highest, int) else highest
    assert len(matrices) in (0, len(tops))
    assert all(min(matrix.shape[-2:]) == top for matrix, top in zip(matrices, tops))
    assert method.factorize(weight.astype(jnp.bfloat16), 1).dtype == jnp.bfloat16


ROWS_OF_LEAVES = [pytest.param(leaf, id=f"{kind.__name__}-{len(leaf.shape)}") for kind, rows in LEAVES.items() for leaf in rows]


@pytest.mark.parametrize("leaf", ROWS_OF_LEAVES)
def test_packed_leaves(leaf: Packed) -> None:
    """It is a tree of its arrays; it unpacks to its shape and dtype, under jit and outside alike; its parts make it again."""
    assert type(jax.tree.unflatten(jax.tree.structure(leaf), jax.tree.leaves(leaf))) is type(leaf)
    array = leaf.unpack()
    assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype)
    assert_same(jax.jit(unpack)(leaf), array)
    assert_same(dense({"w": leaf}), {"w": array})
    assert leaf.stored_as
    found = graph.cost(lambda w, x: x * w, leaf, 1.0).parameters[""]
    assert (found.nonzeros, found.size) == (leaf.nonzeros(), array.size)
    assert 0 < leaf.nonzeros() <= leaf.numbers()
    if isinstance(leaf, Composite):
        assert_same(type(leaf).of_children(list(leaf.children().values()), leaf.shape), leaf)
        other = (*leaf.shape[:-1], 99)
        with pytest.raises(ValueError, match=re.escape(str(other))):
            leaf.check(other)
    if isinstance(leaf, Coded):
        mask = jnp.arange(leaf.size).reshape(leaf.shape) % 3 > 0
        assert_same(leaf.masked(mask).unpack() + 0.0, jnp.where(mask, array, 0) + 0.0)
        np.testing.assert_allclose(unpack(leaf.retrained(leaf.trained())), array, rtol=1e-6)


@pytest.mark.parametrize("leaf", ROWS_OF_LEAVES)
def test_packed_leaves_run_as_they_are(leaf: Packed) -> None:
    """Dots, look-ups, convolutions and scans on it equal those on the dense array within rounding; it is never unpacked."""

    def apply(w: jax.Array, x: jax.Array) -> dict:
        if w.ndim == 4:
            return {"conv": jax.lax.conv_general_dilated(x, w, (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))}
        if w.ndim == 3:
            return {"scan": jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), x.sum()), x, w)}
        return {"dot": x @ w, "left": jnp.einsum("mn,bm->nb", w, x), "gather": jnp.take(w, jnp.array([[5, 0]]), 0)}

    x = draw(2, 7, 6, 4) if leaf.ndim == 4 else draw(5, 6)
    expected, out = jax.jit(apply)(unpack(leaf), x), jax.jit(packed(apply))(leaf, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), out, expected)


def test_packed_leaves_come_back_from_a_file(tmp_path: Path) -> None:
    """The same bits of the same types; the account is the file's size, and knows every leaf."""
    tree = {f"{kind.__name__}{at}": leaf for kind, rows in LEAVES.items() for at, leaf in enumerate(rows) if kind is not Ready}
    save(tmp_path / "m.lepton", lambda v, x: x, tree, jnp.ones((1, 2)))
    artifact = load(tmp_path / "m.lepton")
    assert_same(artifact.packed, tree)
    assert_same(artifact.variables, unpack(tree))
    account = artifact.account()
    assert account.total == (tmp_path / "m.lepton").stat().st_size
    assert account.parameters == sum(leaf.size for leaf in tree.values())
    with pytest.raises(ArtifactError, match="Ready cannot be stored; unpack w first"):
        save(tmp_path / "n.lepton", lambda v, x: x, {"w": LEAVES[Ready][0]}, jnp.ones((1, 2)))
