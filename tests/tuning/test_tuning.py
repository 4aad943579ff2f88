"""Measure, allocate, refine: against enumeration, numpy in float64, and real files."""

import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lepton_jax import Model, account, fake_quant, pack, prune, save, unpack
from lepton_jax.artifact import TensorSizes, tensor_bytes
from lepton_jax.core import paths
from lepton_jax.graph.cost import cost
from lepton_jax.tuning import Bits, Budget, Choice, NofM, Rank, Recipe, Sparsity, Table, allocate, measure, refine
from lepton_jax.tuning.allocate import recipe_of
from lepton_jax.tuning.layer import made_of
from lepton_jax.tuning.outputs import Outputs

OPTIONS = [Bits(2, 4), Sparsity(0.5), Rank(0.25)]


def mlp(variables, x):
    for name in ("first", "second"):
        x = jnp.tanh(x @ variables[name]["kernel"] + variables[name]["bias"][None])
    return x @ variables["out[0]"]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    shapes = {"first": (16, 24), "second": (24, 16)}
    variables = {
        name: {"kernel": jnp.asarray(rng.normal(size=shape) / 4, jnp.float32), "bias": jnp.zeros(shape[1])}
        for name, shape in shapes.items()
    }
    variables |= {"out[0]": jnp.asarray(rng.normal(size=(16, 5)), jnp.float32), "unread": jnp.ones((7, 9))}
    x = [jnp.asarray(rng.normal(size=(n, 16)), jnp.float32) for n in (20, 12)]
    return variables, x, measure(mlp, variables, x, OPTIONS, progress=False)


def kl(dense, other) -> float:
    dense, other = np.asarray(dense, np.float64), np.asarray(other, np.float64)
    logs, others = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in (dense, other))
    return float((np.exp(logs) * (logs - others)).sum(-1).mean())


def test_losses_are_those_of_one_layer_alone(case):
    variables, x, table = case
    rows = jnp.concatenate(x)
    dense = mlp(variables, rows)
    assert list(table.layers) == ["first/kernel", "out[0]", "second/kernel"]  # no bias, nothing unread
    by_hand = {
        Choice(bits=4): fake_quant(4, select="first/kernel"),
        Choice(sparsity=0.5): prune(0.5, select="first/kernel"),
    }
    for choice, transform in by_hand.items():
        seen = transform.view(*transform.init(variables))
        assert table.cells["first/kernel"][choice].loss == pytest.approx(kl(dense, mlp(seen, rows)), rel=1e-3)
    for path, cells in table.cells.items():
        assert cells[Choice()].loss == 0.0
        assert cells[Choice(bits=2)].loss > cells[Choice(bits=4)].loss > 0
        assert cells[Choice(bits=4)].macs == cells[Choice()].macs == cost(mlp, variables, x[0]).parameters[path].macs
    rank = table.cells["first/kernel"][Choice(rank=0.25)]  # 4 of 16: (16 + 24) * 4 of 16 * 24
    assert rank.macs == pytest.approx(table.layers["first/kernel"].macs * 160 / 384)


@pytest.mark.parametrize("shape", [(9,), (9, 1)])
def test_one_logit_an_example_is_that_of_a_sigmoid(shape):
    rng = np.random.default_rng(6)
    variables = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)

    def apply(v, x):
        return (x @ v["w"]).sum(-1).reshape(shape)

    table = measure(apply, variables, [x], [Bits(2)], progress=False)
    other = fake_quant(2)
    p, q = (1 / (1 + np.exp(-np.asarray(apply(v, x), np.float64))) for v in (variables, other.view(*other.init(variables))))
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert table.cells["w"][Choice(bits=2)].loss == pytest.approx(expected, rel=1e-3)
    cheap = measure(apply, variables, [x], [Bits(8)], by="gradients", progress=False).cells["w"][Choice(bits=8)].loss
    exact = measure(apply, variables, [x], [Bits(8)], progress=False).cells["w"][Choice(bits=8)].loss
    assert 0.3 < cheap / exact < 3


def test_allocation_is_the_best_of_all(case):
    """By enumeration of every recipe, under one limit and under two."""
    table = Table.from_json(case[2].to_json())  # costs that add up, without files
    names = list(table.cells)
    every = [
        (
            sum(table.cells[p][c].loss for p, c in zip(names, chosen)),
            table.rest_bytes + sum(table.cells[p][c].bytes for p, c in zip(names, chosen)),
            table.rest_macs + sum(table.cells[p][c].macs for p, c in zip(names, chosen)),
        )
        for chosen in itertools.product(*(table.cells[p] for p in names))
    ]
    smallest, dense = min(size for _, size, _ in every), max(macs for *_, macs in every)
    rng = np.random.default_rng(0)
    for share in rng.uniform(1.05, 3, 6):
        limits = {"bytes": round(smallest * share), "macs": dense * rng.uniform(0.5, 1)}
        one = allocate(table, Budget(bytes=limits["bytes"]))
        assert one.loss == pytest.approx(min(loss for loss, size, _ in every if size <= limits["bytes"]), rel=2e-4)
        assert one.bytes <= limits["bytes"]
        fitting = [loss for loss, size, macs in every if size <= limits["bytes"] and macs <= limits["macs"]]
        if fitting:
            both = allocate(table, Budget(**limits))
            assert both.loss == pytest.approx(min(fitting), rel=2e-4)
            assert both.macs <= limits["macs"] * (1 + 1e-9)
        else:
            with pytest.raises(ValueError, match=r"no recipe keeps bytes=.* and macs="):
                allocate(table, Budget(**limits))
        limit = float(rng.uniform(0.01, 0.2))
        least = allocate(table, Budget(loss=limit))
        assert least.bytes == min(size for loss, size, _ in every if loss <= limit)
        assert least.loss <= limit


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_the_file_is_as_large_as_the_recipe_says_and_no_larger_than_allowed(case, share, tmp_path):
    variables, x, table = case
    floats = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))
    budget = Budget(bytes=round(share * floats))
    recipe = allocate(table, budget)
    transform = recipe.transform()
    params, state = transform.init(variables)
    packed = pack(transform, params, state)
    save(tmp_path / "m.lepton", mlp, packed, x[0])
    tensors = sum(tensor.total for tensor in account(tmp_path / "m.lepton").tensors)
    assert tensors == recipe.bytes <= budget.bytes
    for seen, held in zip(jax.tree.leaves(transform.view(params, state)), jax.tree.leaves(unpack(packed)), strict=True):
        np.testing.assert_array_equal(seen, held)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    np.testing.assert_array_equal(
        again.transform().view(*again.transform().init(variables))["out[0]"], transform.view(params, state)["out[0]"]
    )


def test_refinement_is_measured_and_keeps_the_budget(case):
    variables, x, table = case
    budget = Budget(bytes=round(0.25 * 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))))
    recipe = allocate(table, budget)
    found = refine(recipe, table, budget, mlp, x, evaluations=40, progress=False)
    rows = jnp.concatenate(x)
    for one, loss in ((recipe, found.before), (found.recipe, found.recipe.measured)):
        transform = one.transform()
        seen = transform.view(*transform.init(variables))
        assert loss == pytest.approx(kl(mlp(variables, rows), mlp(seen, rows)), rel=1e-3)
    assert found.recipe.measured <= found.before
    assert found.recipe.bytes <= budget.bytes
    assert found.evaluations <= 40
    sizes, losses = zip(*found.front)
    assert list(sizes) == sorted(sizes)
    assert list(losses) == sorted(losses, reverse=True)
    assert refine(recipe, table, budget, mlp, x, evaluations=40, progress=False).recipe == found.recipe


def test_the_model_is_compiled_once(case):
    variables, x, _ = case
    traced = []

    def counted(variables, x):
        traced.append(x.shape)
        return mlp(variables, x)

    table = measure(counted, variables, x[:1], OPTIONS, progress=False)
    # Roles, costs, the dense outputs, the divergence: not once a choice.
    assert len(traced) <= 4
    assert sum(map(len, table.cells.values())) > 12
    outputs = Outputs(counted, variables, [(x[0],)], "kl")
    traced.clear()
    for scale in (1.0, 0.5, 0.25):
        outputs("out[0]", scale * variables["out[0]"])
    assert len(traced) <= 1


def test_layers_of_one_shape_share_one_program():
    """All choices of a layer are one program, for every layer of its shape; what was made is not made again."""
    rng = np.random.default_rng(8)
    variables = {name: jnp.asarray(rng.normal(size=(9, 9)) / 3, jnp.float32) for name in "abc"}
    x, before = [jnp.asarray(rng.normal(size=(20, 9)), jnp.float32)], made_of._cache_size()

    def apply(v, x):
        for name in "abc":
            x = jnp.tanh(x @ v[name])
        return x

    table = measure(apply, variables, x, [Bits(2, 3, 5), Sparsity(0.4, 0.6)], progress=False)
    assert made_of._cache_size() == before + 1
    recipe = allocate(table, Budget(bytes=300))
    refine(recipe, table, Budget(bytes=300), apply, x, evaluations=10, progress=False)
    assert made_of._cache_size() == before + 1


def test_sizes_of_recipes_that_share_leaves_are_those_of_files(case):
    variables, _, table = case
    rng, sizes = np.random.default_rng(), TensorSizes()
    for _ in range(12):
        choices = {path: list(cells)[rng.integers(len(cells))] for path, cells in table.cells.items()}
        settled = {path: table.layers[path].settled(choice) for path, choice in choices.items()}
        packed = table.packing.packed(settled)
        recipe = recipe_of(table, choices)
        transform = recipe.transform()
        again = pack(transform, *transform.init(variables))
        assert sizes(packed) == sizes(packed) == tensor_bytes(again) == recipe.bytes
        for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(one, other)
    # At most each choice of each layer once, and again where earlier leaves tell others.
    assert sizes.coded < 12 * len(jax.tree.leaves(variables))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2))
        return nn.Dense(4)(x)


def linen():
    module, x = Linen(), jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 6, 4)), jnp.float32)
    return module.apply, module.init(jax.random.key(0), x), x


def an_nnx():
    model = Model.from_nnx(nnx.Sequential(nnx.Linear(8, 12, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(12, 4, rngs=nnx.Rngs(1))))
    return model.apply, model.variables, jnp.asarray(np.random.default_rng(1).normal(size=(5, 8)), jnp.float32)


def scanned():
    rng = np.random.default_rng(2)
    variables = {
        "layers": jnp.asarray(rng.normal(size=(3, 8, 8)) / 3, jnp.float32),
        "head": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
    }

    def apply(variables, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, variables["layers"])[0] @ variables["head"]

    return apply, variables, jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)


def torch_like():
    rng = np.random.default_rng(4)
    variables = {
        "table": jnp.asarray(rng.normal(size=(11, 8)), jnp.float32),
        "weight": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
    }
    return lambda v, tokens: v["table"][tokens] @ v["weight"].T, variables, jnp.asarray(rng.integers(0, 11, (5, 3)))


@pytest.mark.parametrize("make", [linen, an_nnx, scanned, torch_like])
@pytest.mark.parametrize("by", ["outputs", "gradients"])
def test_models_of_all_kinds(make, by, tmp_path):
    apply, variables, x = make()
    table = measure(apply, variables, [x], [Bits(3, 8), Sparsity(0.5), NofM(2, 4), Rank(0.3)], by=by, progress=False)
    assert len(table.layers) == 2
    assert all(cell.loss >= 0 for cells in table.cells.values() for cell in cells.values())
    floor = recipe_of(table, {path: min(cells, key=lambda c: cells[c].bytes) for path, cells in table.cells.items()}).bytes
    budget = Budget(bytes=floor + 60)
    recipe = allocate(table, budget)
    transform = recipe.transform()
    save(tmp_path / "m.lepton", apply, pack(transform, *transform.init(variables)), x)
    assert sum(tensor.total for tensor in account(tmp_path / "m.lepton").tensors) == recipe.bytes <= budget.bytes
    if isinstance(variables, dict) and "params" in variables:  # a transform may be given what is trained alone
        alone = recipe.transform()
        part = alone.view(*alone.init(variables["params"]))
        whole = transform.view(*transform.init(variables))
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole["params"]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_each_of_stacked_matrices_is_treated_alone():
    """A scan over three layers of different sizes, against three leaves."""
    apply, variables, x = scanned()
    variables = {**variables, "layers": variables["layers"] * jnp.array([1.0, 0.1, 0.01])[:, None, None]}
    table = measure(apply, variables, [x], [Bits(3), Sparsity(0.5), Rank(0.3)], progress=False)
    for choice in table.cells["layers"]:
        seen = {}
        for path in ("layers",):
            recipe = recipe_of(table, {path: choice, "head": Choice()})
            transform = recipe.transform()
            seen = transform.view(*transform.init(variables))[path]
        for layer in range(3):
            one = Recipe.from_json(recipe.to_json())
            single = measure(
                lambda v, x: x @ v["w"],
                {"w": variables["layers"][layer]},
                [x],
                [Bits(3), Sparsity(0.5), Rank(0.3)],
                progress=False,
            )
            alone = recipe_of(single, {"w": choice}).transform()
            expected = alone.view(*alone.init({"w": variables["layers"][layer]}))["w"]
            np.testing.assert_allclose(seen[layer], expected, rtol=1e-5, atol=1e-6)
        assert one.choices == recipe.choices


def test_small_changes_by_gradients_are_as_measured():
    rng = np.random.default_rng(5)
    variables = {
        "w": jnp.asarray(rng.normal(size=(6, 8)) / 2, jnp.float32),
        "out": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(200, 6)), jnp.float32)

    def apply(v, x):
        return jnp.tanh(x @ v["w"]) @ v["out"]

    for divergence in ("kl", "error"):
        exact, cheap = (
            measure(apply, variables, [x[:120], x[120:]], [Bits(6, 7, 8)], divergence=divergence, by=by, progress=False)
            for by in ("outputs", "gradients")
        )
        ratios = [cheap.cells[p][c].loss / cell.loss for p, cells in exact.cells.items() for c, cell in cells.items() if c.bits]
        assert 0.6 < float(np.exp(np.mean(np.log(ratios)))) < 1.6  # 32 random directions


def test_an_interrupted_table_is_gone_on_with(case, tmp_path, monkeypatch):
    variables, x, table = case
    file = tmp_path / "table.json"
    kept, saves = Table.save, []

    def killed(self, path):
        kept(self, path)
        saves.append(len(self.cells))
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Table, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(mlp, variables, x, OPTIONS, file=file, progress=False)
    assert saves == [1, 2]
    monkeypatch.setattr(Table, "save", lambda self, path: (kept(self, path), saves.append(len(self.cells)))[0])
    assert measure(mlp, variables, x, OPTIONS, file=file, progress=False) == table
    assert saves == [1, 2, 3]  # only what was missing
    other = {**variables, "out[0]": jnp.ones((16, 6))}
    with pytest.raises(ValueError, match="table of another model"):
        measure(mlp, other, x, OPTIONS, file=file, progress=False)
    table.draw(tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_what_cannot_be_done_is_said_in_one_line(case):
    variables, x, table = case
    with pytest.raises(ValueError, match=r"options: give at least one of Bits"):
        measure(mlp, variables, x, [], progress=False)
    with pytest.raises(TypeError, match=r"each a Option; got 4"):
        measure(mlp, variables, x, [4], progress=False)
    with pytest.raises(ValueError, match="at least one batch"):
        measure(mlp, variables, [], OPTIONS, progress=False)
    with pytest.raises(ValueError, match="first/kernel"):
        measure(
            mlp,
            {**variables, "first": {**variables["first"], "kernel": jnp.full((16, 24), jnp.nan)}},
            x,
            OPTIONS,
            progress=False,
        )
    with pytest.raises(ValueError, match="outputs on the batches must be finite"):
        measure(mlp, variables, [x[0] * jnp.nan], OPTIONS, progress=False)
    with pytest.raises(ValueError, match="first/bias is no weight, but bias"):
        measure(mlp, variables, x, OPTIONS, select="*/bias", progress=False)
    with pytest.raises(ValueError, match=r"bytes=10 is less than the smallest recipe needs, [\d,]+;") as refused:
        allocate(table, Budget(bytes=10))
    smallest = int(str(refused.value).split("needs, ")[1].split(";")[0].replace(",", ""))
    assert allocate(table, Budget(bytes=smallest)).bytes == smallest
    with pytest.raises(ValueError, match=r"macs=1 is less than the smallest recipe needs"):
        allocate(table, Budget(macs=1))
    for one in (table, Table.from_json(table.to_json())):  # those of several that contradict each other are named, the rest not
        with pytest.raises(ValueError, match="no recipe keeps bytes=900 and loss=1e-09 together"):
            allocate(one, Budget(bytes=900, macs=10**9, loss=1e-9))
    for wrong in ({}, {"bytes": -1}, {"bytes": "fifty"}, {"loss": float("nan")}, {"macs": 0}):
        with pytest.raises(ValueError, match="Budget"):
            Budget(**wrong)
    assert Budget(bytes="1.5MB").bytes == 1_500_000
    for make in (
        lambda: Bits(),
        lambda: Bits(9),
        lambda: Bits(2.5),
        lambda: Sparsity(1.0),
        lambda: Rank(2),
        lambda: NofM(4, 4),
    ):
        with pytest.raises(ValueError, match="takes"):
            make()
    for text in ("", "[]", "{}", '{"version": 1}', json.dumps({**json.loads(table.to_json()), "version": 9})):
        with pytest.raises(ValueError, match=r"this is no table"):
            Table.from_json(text)
        with pytest.raises(ValueError, match=r"this is no recipe"):
            Recipe.from_json(text)
    recipe = allocate(table, Budget(bytes="1MB"))
    with pytest.raises(ValueError, match="must have the model's variables"):
        refine(recipe, Table.from_json(table.to_json()), Budget(bytes=10**6), mlp, x, progress=False)


def test_a_free_budget_leaves_the_model_as_it_is(case):
    variables, _, table = case
    recipe = allocate(table, Budget(bytes="1MB"))
    assert set(recipe.choices.values()) == {Choice()}
    assert recipe.loss == 0.0
    transform = recipe.transform()
    for path, leaf in paths.flatten(transform.view(*transform.init(variables))).items():
        np.testing.assert_array_equal(leaf, paths.flatten(variables)[path])
