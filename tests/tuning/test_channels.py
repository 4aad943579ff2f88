"""Groups of channels as units of a recipe: against enumeration, masked models, and files that really are smaller."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import Model, account, load_model, pack, save
from lepton_jax.core import paths
from lepton_jax.graph.cost import cost
from lepton_jax.tuning import Bits, Budget, Channels, Choice, Rank, Recipe, Sparsity, Table, allocate, measure, refine
from lepton_jax.tuning.allocate import recipe_of
from lepton_jax.tuning.outputs import Outputs

OPTIONS = [Bits(2, 4), Sparsity(0.5), Channels(0.25, 0.5)]


def net(variables, x):
    """A residual: its square matrix loses channels on both axes; a concatenation: one matrix belongs to two groups."""
    h = jnp.tanh(x @ variables["in"] + variables["bias"][None])
    h = h + jnp.tanh(h @ variables["square"])
    side = jnp.tanh(x @ variables["side"])
    return jnp.concatenate([h, side], -1) @ variables["out"]


def inputs(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def case():
    shapes = {"in": (12, 16), "square": (16, 16), "side": (12, 8), "out": (24, 5)}
    variables = {name: inputs(n, shape) / 3 for n, (name, shape) in enumerate(shapes.items())} | {"bias": inputs(9, (16,)) / 9}
    x = [inputs(20, (30, 12)), inputs(21, (10, 12))]
    return variables, x, measure(net, variables, x, OPTIONS, progress=False)


def test_what_a_group_loses_is_measured_with_zeros_in_its_place(case):
    variables, x, table = case
    assert {name: group.size for name, group in table.groups.named.items()} == {"in[1]": 16, "side[1]": 8}
    for name, cells in table.groups.cells.items():
        for fraction, cell in cells.items():
            assert len(cell.removed) == fraction * table.groups.named[name].size
            rows = {"in[1]": ("in", "square"), "side[1]": ("side",)}[name]
            masked = {k: np.array(leaf) for k, leaf in variables.items()}
            gone = list(cell.removed)
            for leaf in rows:
                masked[leaf][:, gone] = 0
            if name == "in[1]":
                masked["bias"][gone] = 0
                masked["square"][gone] = 0
            dense, other = (np.asarray(net(v, jnp.concatenate(x)), np.float64) for v in (variables, masked))
            logs, others = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in (dense, other))
            assert cell.loss == pytest.approx((np.exp(logs) * (logs - others)).sum(-1).mean(), rel=1e-3)
    assert {b.groups: round(b.share, 6) for b in table.groups.blocks("out")} == {("in[1]",): 0.666667, ("side[1]",): 0.333333}
    assert [b.groups for b in table.groups.blocks("square")] == [("in[1]", "in[1]")]


def test_allocation_is_the_best_of_all_choices_and_groups(case):
    table = Table.from_json(case[2].to_json())
    assert table == case[2]
    names, groups = list(table.cells), list(table.groups.cells)
    every = []
    for gone in itertools.product(*((0.0, *table.groups.cells[g]) for g in groups)):
        fractions = dict(zip(groups, gone))
        ratios = {p: table.groups.ratio(p, fractions) for p in names}
        extra = [table.groups.cells[g][f] for g, f in fractions.items() if f]
        for chosen in itertools.product(*(table.cells[p] for p in names)):
            cells = {p: table.cells[p][c] for p, c in zip(names, chosen)}
            every.append(
                (
                    sum(c.loss for c in (*cells.values(), *extra)),
                    table.rest_bytes + sum(ratios[p] * c.bytes for p, c in cells.items()) + sum(c.bytes for c in extra),
                    table.rest_macs + sum(ratios[p] * c.macs for p, c in cells.items()),
                )
            )
    losses, sizes, macs = map(np.array, zip(*every))
    rng = np.random.default_rng(4)
    took = set()
    for share in rng.uniform(1.02, 2.2, 6):
        limits = {"bytes": sizes.min() * share, "macs": macs.max() * rng.uniform(0.45, 1)}
        fits = (sizes <= limits["bytes"]) & (macs <= limits["macs"])
        if not fits.any():
            with pytest.raises(ValueError, match="no recipe keeps"):
                allocate(table, Budget(**limits))
            continue
        found = allocate(table, Budget(**limits))
        assert found.loss == pytest.approx(losses[fits].min(), rel=3e-4)
        assert found.macs <= limits["macs"] * (1 + 1e-9)
        took.add(found.channels is not None)
    assert True in took
    with pytest.raises(ValueError, match=r"macs=10 is less than the smallest recipe needs, [\d,.e+]+;") as refused:
        allocate(table, Budget(macs=10))
    assert float(str(refused.value).split("needs, ")[1].split(";")[0].replace(",", "")) == pytest.approx(macs.min(), rel=1e-3)


@pytest.mark.parametrize("share", [0.45, 0.7])
def test_a_recipe_shrinks_the_model_and_its_file(case, share, tmp_path):
    variables, x, table = case
    work = cost(net, variables, x[0]).macs
    budget = Budget(macs=share * work, bytes=900)
    recipe = refine(allocate(table, budget), table, budget, net, x, evaluations=15, progress=False).recipe
    small, run = recipe.shrink(variables), recipe.rewrite(net)
    transform = recipe.transform()
    params, state = transform.init(small)
    packed = pack(transform, params, state)
    assert any(leaf.shape != variables[path].shape for path, leaf in paths.flatten(small).items())
    save(tmp_path / "m.lepton", run, packed, x[0])
    assert sum(one.total for one in account(tmp_path / "m.lepton").tensors) == recipe.bytes <= 900
    assert cost(run, small, x[0]).macs == pytest.approx(recipe.macs)
    assert recipe.macs <= share * work
    # What was measured with zeros is what the smaller model does.
    seen = table.packing.seen(recipe.choices, recipe.channels)
    np.testing.assert_allclose(run(transform.view(params, state), x[0]), net(seen, x[0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(load_model(tmp_path / "m.lepton")(x[0]), net(seen, x[0]), rtol=1e-4, atol=1e-5)
    assert recipe.measured == pytest.approx(Outputs(net, variables, [(b,) for b in x], "kl").of(seen), rel=1e-5)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.shrink(variables)["square"].shape == small["square"].shape
    assert "channels go" in str(recipe)
    assert refine(allocate(table, budget), table, budget, net, x, evaluations=15, progress=False).recipe == recipe


def test_the_model_is_compiled_once_for_all_channels(case):
    variables, x, _ = case
    traced = []

    def counted(variables, x):
        if isinstance(x, jax.core.Tracer):
            traced.append(1)
        return net(variables, x)

    outputs = Outputs(counted, variables, [(x[0],)], "kl")
    compiled = outputs._moved._cache_size()
    table = measure(net, variables, x[:1], OPTIONS, progress=False)
    traced.clear()
    for gone in itertools.product((0.0, 0.25, 0.5), repeat=2):
        fractions = dict(zip(table.groups.cells, gone))
        outputs.of(table.packing.seen({}, table.groups.plan_of(fractions)))
    assert len(traced) <= 1
    assert outputs._moved._cache_size() == compiled + 1


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))  # depthwise
        return nn.Dense(4)(nn.relu(nn.Conv(6, (1, 1))(x)).mean((1, 2)))


def depthwise():
    module, x = Block(), inputs(0, (3, 6, 6, 3))
    return module.apply, module.init(jax.random.key(0), x), x


def scanned():
    variables = {"up": inputs(1, (3, 8, 12)) / 3, "down": inputs(2, (3, 12, 8)) / 3, "head": inputs(3, (8, 4))}

    def apply(v, x):
        body = lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None)  # noqa: E731
        return jax.lax.scan(body, x, (v["up"], v["down"]))[0] @ v["head"]

    return apply, variables, inputs(4, (5, 8))


def an_nnx():
    from flax import nnx

    model = Model.from_nnx(nnx.Sequential(nnx.Linear(8, 12, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(12, 4, rngs=nnx.Rngs(1))))
    return model.apply, model.variables, inputs(5, (5, 8))


@pytest.mark.parametrize("make", [depthwise, scanned, an_nnx])
def test_models_of_all_kinds_become_smaller(make, tmp_path):
    apply, variables, x = make()
    work = cost(apply, variables, x).macs
    model = Model(apply, variables, (x[:1],))
    tuned = model.tune([x], macs=0.75 * work, options=[Bits(8), Channels(0.5)], progress=False)
    assert any("channels go" in step.text for step in tuned.applied)
    assert cost(tuned.apply, tuned.dense, x).macs <= 0.75 * work
    tuned.save(tmp_path / "small.lepton")
    np.testing.assert_allclose(load_model(tmp_path / "small.lepton")(x), tuned(x), rtol=1e-4, atol=1e-5)
    table = measure(apply, variables, [x], [Bits(8), Channels(0.5)], by="gradients", progress=False)
    assert all(cell.loss >= 0 for cells in table.groups.cells.values() for cell in cells.values())


def test_weights_that_are_not_selected_keep_their_channels(case):
    variables, x, _ = case
    table = measure(net, variables, x, [Bits(4), Channels(0.5)], select="side", progress=False)
    assert table.groups is None
    table = measure(net, variables, x, [Bits(4), Channels(0.5)], select=("side", "out"), progress=False)
    assert list(table.groups.cells) == ["side[1]"]


def test_what_cannot_be_done_is_said_in_one_line(case, tmp_path):
    variables, x, table = case
    for wrong in (Channels, lambda: Channels(1.0), lambda: Channels(0), lambda: Channels(-0.5), lambda: Channels(float("nan"))):
        with pytest.raises(ValueError, match="Channels: takes fractions in"):
            wrong()
    with pytest.raises(ValueError, match="the model has no channels that can go"):
        measure(lambda v, x: x @ v["w"], {"w": jnp.ones((12, 3))}, x, [Channels(0.5)], progress=False)
    plain = measure(lambda v, x: x @ v["w"], {"w": jnp.ones((12, 3))}, x, [Bits(4), Channels(0.5)], progress=False)
    assert plain.groups is None
    recipe = recipe_of(table, dict.fromkeys(table.cells, Choice()), {"side[1]": 0.5})
    other = measure(net, variables, x, [Bits(2, 4)], progress=False)
    with pytest.raises(ValueError, match="the table has no channels that go"):
        refine(recipe, other, Budget(bytes=900), net, x, progress=False)
    file = tmp_path / "t.json"
    assert measure(net, variables, x, OPTIONS, file=file, progress=False) == table
    assert measure(net, variables, x, OPTIONS, file=file, progress=False) == table
    with pytest.raises(ValueError, match="of other batches, options") as refused:
        measure(net, variables, x, [*OPTIONS, Rank(0.5)], file=file, progress=False)
    assert "\n" not in str(refused.value)
    table.draw(tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000
    assert "50 % gone" in str(table)
