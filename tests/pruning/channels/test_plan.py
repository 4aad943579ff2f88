"""Plans: cuts, rankings, text, other trees, other shapes, and everything that must be refused."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lepton_jax.graph.cost import cost
from lepton_jax.paths import flatten
from lepton_jax.pruning.channels import (
    ActivationRank,
    BatchNormScale,
    Elements,
    Fisher,
    GeometricMedian,
    Group,
    GroupSparsity,
    Norm,
    Plan,
    Random,
    Slices,
    Taylor,
    feature_maps,
    plan,
    prune_iteratively,
    verify,
)
from lepton_jax.pruning.channels.match import Matcher
from lepton_jax.pruning.criteria import Magnitude

sys.path.insert(0, str(Path(__file__).parent))
from channel_models import MODELS


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.Conv(4, (3, 3), name="last")(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), jnp.float32)


@pytest.fixture(scope="module")
def net():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), X)
    rng = np.random.default_rng(5)
    variables = jax.tree.map(lambda s: jnp.asarray(np.abs(rng.standard_normal(s.shape)), s.dtype), shapes)
    return Net().apply, variables


def mlp(v, x):
    return jax.nn.relu(x @ v["a"]) @ v["b"]


MLP = {"a": jnp.array([[1.0, -2.0, 3.0, 0.5], [1.0, 0.0, -1.0, 0.5]]), "b": jnp.array([[1.0], [-4.0], [0.5], [0.25]])}
POINT = jnp.ones((1, 2))


def group(path="kernel", size=4):
    return Group(slices=(Slices(path=path, axis=0, indices=np.arange(size)[:, None]),))


def removed(made):
    return {g.name: g.removed for g in made.groups}


def test_scores_by_hand():
    # sum |w| of a's columns 2, 2, 4, 1 and of b's rows 1, 4, .5, .25
    def by(**settings):
        return plan(mlp, MLP, POINT, fraction=0.5, **settings).removed["a", 1]

    assert by() == (0, 3)
    assert by(reduce="max") == (0, 3)
    assert by(criterion=Norm(select="a", order=2)) == (0, 3)
    assert by(criterion=Norm(select="b")) == (2, 3)
    assert by(criterion=Norm(order=2)) == (0, 3)
    assert by(criterion=Magnitude()) == (0, 3)
    # |b g|: 1, .04, .5, 2
    gradients = {"a": jnp.zeros((2, 4)), "b": jnp.array([[1.0], [0.01], [1.0], [8.0]])}
    assert by(criterion=Taylor(gradients=gradients)) == (1, 2)
    assert by(criterion=Elements(criterion=Magnitude(), select="b")) == (2, 3)


def test_fisher_and_joint_taylor_by_hand():
    curvature = {"a": jnp.ones((2, 4)), "b": jnp.zeros((4, 1))}
    # sum a**2 / 2 by column: 1, 2, 5, .25
    assert plan(mlp, MLP, POINT, fraction=0.5, criterion=Fisher(curvature=curvature)).removed["a", 1] == (0, 3)
    gradients = {"a": jnp.array([[1.0, 1.0, 1.0, 1.0], [-1.0, 9.0, 3.0, 1.0]]), "b": jnp.zeros((4, 1))}
    # |sum a g| by column: 0, 2, 0, 1; sum |a g|: 2, 2, 6, 1
    assert plan(mlp, MLP, POINT, fraction=0.5, criterion=Taylor(gradients=gradients, joint=True)).removed["a", 1] == (0, 2)


def test_geometric_median_takes_the_most_replaceable():
    variables = {"a": jnp.array([[0.0, 1.0, 1.1, 9.0], [0.0, 0.0, 0.0, 0.0]]), "b": jnp.ones((4, 1))}
    assert plan(mlp, variables, POINT, fraction=0.25, criterion=GeometricMedian()).removed["a", 1] == (1,)


def test_batch_norm_scale(net):
    apply, variables = net
    with pytest.raises(ValueError, match=r"params/last/kernel\[3\]: none of its slices has a score"):
        plan(apply, variables, X, fraction=0.5, criterion=BatchNormScale())
    made = plan(apply, variables, X, fraction=0.5, criterion=BatchNormScale(), exclude="*last/bias")
    scale = np.asarray(variables["params"]["BatchNorm_0"]["scale"])
    assert made.removed["params/BatchNorm_0/scale", 0] == tuple(sorted(np.argsort(scale)[:4].tolist()))


def test_activation_rank(net):
    apply, variables = net
    maps = feature_maps(apply, variables, X)
    assert {place: m.shape for place, m in maps.items()} == {
        ("params/Conv_0/kernel", 3): (2, 8, 4, 4),
        ("params/last/kernel", 3): (2, 4, 4, 4),
    }
    flat = dict(maps)
    flat["params/last/kernel", 3] = np.concatenate([np.ones((2, 2, 4, 4)), maps["params/last/kernel", 3][:, 2:]], axis=1)
    made = plan(apply, variables, X, fraction=0.5, criterion=ActivationRank(maps=flat))
    assert made.removed["params/last/kernel", 3] == (0, 1)


def test_random_is_reproducible(net):
    apply, variables = net
    shapes = jax.eval_shape(lambda: variables)
    first, again, other = (
        removed(plan(apply, shapes, X, fraction=0.5, criterion=Random(key=jax.random.key(k)))) for k in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_cut_by_channels_macs_and_parameters(net):
    apply, variables = net
    by_channels = plan(apply, variables, X, fraction=0.3)
    assert [(g.size, len(g.removed)) for g in by_channels.groups] == [(8, 2), (4, 1)]

    def macs(left):
        return 2 * 16 * 9 * (3 * left[0] + left[0] * left[1]) + 2 * left[1] * 2

    def parameters(left):
        return 27 * left[0] + 3 * left[0] + 9 * left[0] * left[1] + left[1] + 2 * left[1] + 2

    for of, amount in (("macs", macs), ("parameters", parameters)):
        for ranking in ("group", "global"):
            made = plan(apply, variables, X, fraction=0.4, of=of, ranking=ranking)
            left = [g.size - len(g.removed) for g in made.groups]
            assert amount(left) <= 0.6 * amount([8, 4])
            # The next smaller cut would not do.
            assert max(amount([left[0] + 1, left[1]]), amount([left[0], left[1] + 1]), amount([left[0] + 2, left[1] + 1])) > (
                0.6 * amount([8, 4])
            )


@pytest.mark.parametrize(
    "name", ["resnet_b_eval", "mobilenet", "grouped", "transformer_gqa", "transformer_scan", "lstm", "unet"]
)
def test_the_cut_in_macs_is_what_the_shrunk_model_saves(name):
    apply, variables, inputs, _ = MODELS[name]()
    made = plan(apply, variables, *inputs, fraction=0.4, of="macs", criterion=Random(key=jax.random.key(0)))
    dense = cost(apply, variables, *inputs).macs
    assert cost(made.rewrite(apply), made.shrink(variables), *inputs).macs <= 0.6 * dense
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    made = plan(apply, variables, *inputs, fraction=0.4, of="parameters", criterion=Random(key=jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(made.shrink(variables)["params"])) <= 0.6 * size


def test_global_ranking_spares_the_important_group():
    def apply(v, x):
        return mlp({"a": v["a"], "b": v["b"]}, x) + mlp({"a": v["c"], "b": v["d"]}, x)

    variables = {"a": MLP["a"], "b": MLP["b"], "c": 100 * MLP["a"], "d": 100 * MLP["b"]}
    made = plan(apply, variables, POINT, fraction=0.5, ranking="global", normalize="none")
    assert [len(indices) for indices in removed(made).values()] == [3, 0]
    assert len(plan(apply, variables, POINT, fraction=0.5, ranking="global").removed["c", 1]) == 2


def test_rounding_and_the_last_channel(net):
    apply, variables = net
    made = plan(apply, variables, X, fraction=0.7, round_to=4)
    assert [(g.size, len(g.removed)) for g in made.groups] == [(8, 4), (4, 0)]
    made = plan(apply, variables, X, fraction=0.99)
    assert [(g.size, len(g.removed)) for g in made.groups] == [(8, 7), (4, 3)]


def test_no_value_is_left_without_channels():
    def apply(v, x):
        left, right = jnp.split(x @ v["a"], 2, axis=1)
        return left @ v["b"] + right @ v["b"]

    variables = {"a": jnp.arange(24.0).reshape(2, 12) + 1, "b": jnp.ones((6, 2))}
    made = plan(apply, variables, POINT, fraction=0.9)
    assert len(made.removed["a", 1]) == 2 * len(made.removed["b", 0]) == 10

    def bare(v, x):
        h = x @ v["a"]
        return jnp.concatenate([h[:, :2].max(axis=0, keepdims=True) * 0 + h[:, :2], h[:, 2:]], axis=1) @ v["b"]

    made = plan(bare, {"a": jnp.arange(12.0).reshape(2, 6) + 1, "b": jnp.ones((6, 2))}, POINT, fraction=0.8)
    assert verify(made, bare, {"a": jnp.arange(12.0).reshape(2, 6) + 1, "b": jnp.ones((6, 2))}, POINT, gradients=False)
    assert set(made.removed["a", 1]) != {0, 1, 2, 3}


def test_exclude(net):
    apply, variables = net
    made = plan(apply, variables, X, fraction=0.5, exclude=("params/Dense_0/kernel",))
    assert ("params/last/kernel", 3) not in made.removed
    assert len(made.removed["params/Conv_0/kernel", 3]) == 4


def test_json_and_text(net):
    apply, variables = net
    made = plan(apply, variables, X, fraction=0.5)
    again = Plan.from_json(made.to_json())
    assert again.removed == made.removed
    assert again.shapes == made.shapes
    assert again.fixed == made.fixed
    assert again.to_json() == made.to_json()
    text = str(made)
    for path in (
        "params/last/kernel axis 2",
        "batch_stats/BatchNorm_0/mean axis 0",
        "params/Dense_0/kernel axis 1 (an output)",
    ):
        assert path in text


def test_one_plan_shrinks_variables_optimizer_and_averages_and_both_modes(net):
    apply, variables = net
    made = Plan.from_json(plan(apply, variables, X, fraction=0.5).to_json())
    shrunk = made.shrink(variables)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = optimizer.init(variables["params"])
    small = made.shrink(state)
    reference = optimizer.init(shrunk["params"])
    assert jax.tree.structure(small) == jax.tree.structure(reference)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, reference)
    average = made.shrink({"ema": variables, "step": jnp.zeros(())})
    assert flatten(average["ema"]).keys() == flatten(shrunk).keys()
    numbered = jax.tree.map(lambda a: jnp.arange(a.size, dtype=jnp.float32).reshape(a.shape), variables)
    moments = made.shrink({"mu": numbered["params"]})["mu"]
    gone = list(made.removed["params/Conv_0/kernel", 3])
    np.testing.assert_array_equal(
        moments["Conv_0"]["kernel"], np.delete(np.asarray(numbered["params"]["Conv_0"]["kernel"]), gone, axis=3)
    )

    def train(v, x):
        return apply(v, x, train=True, mutable=["batch_stats"])

    logits, updated = jax.eval_shape(made.rewrite(train), shrunk, jnp.zeros((5, 6, 6, 3)))
    assert logits.shape == (5, 2)
    assert updated["batch_stats"]["BatchNorm_0"]["mean"].shape == (4,)
    assert verify(made, train, variables, X).worst <= 1e-5


def test_mask_is_differentiable_and_silences_nan():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    masked = made.mask({"a": MLP["a"].at[:, 3].set(jnp.nan), "b": MLP["b"]})
    np.testing.assert_array_equal(masked["a"], [[0, -2, 3, 0], [0, 0, -1, 0]])
    assert masked["a"].dtype == jnp.float32
    gradient = jax.grad(lambda v: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(made.mask(v))))(MLP)
    np.testing.assert_array_equal(gradient["b"], [[0], [1], [1], [0]])


def test_verify_says_where(net):
    apply, variables = net
    made = plan(apply, variables, X, fraction=0.5)
    calls = []

    def lying(v, x):
        # The shrunk call differs from the masked one.
        calls.append(v["params"]["Conv_0"]["kernel"].shape)
        return {"logits": apply(v, x) * (1.0 if len(calls) == 1 else 2.0)}

    with pytest.raises(ValueError, match=r"output logits: 1\.00e\+00"):
        verify(made, lying, variables, X, gradients=False)


def test_a_function_that_needs_a_removed_channel_is_refused():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    with pytest.raises(ValueError, match=r"a axis 1, indices \[0, 3\]: an output"):
        jax.eval_shape(made.rewrite(lambda v, x: x @ v["a"]), made.shrink(MLP), POINT)


def test_renormalised_statistics_stay_those_of_the_masked_model():
    def apply(v, x):
        h = x @ v["a"]
        return (h / jnp.sqrt(jnp.mean(h**2, axis=1, keepdims=True) + 1e-3)) @ v["b"]

    made = plan(apply, MLP, POINT, fraction=0.5)
    h = np.asarray(POINT @ MLP["a"])[:, [1, 2]]
    expected = h / np.sqrt((h**2).sum() / 4 + 1e-3) @ np.asarray(MLP["b"])[[1, 2]]
    np.testing.assert_allclose(made.rewrite(apply)(made.shrink(MLP), POINT), expected, rtol=1e-6)


def test_derivative_of_relu_at_zero_survives():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    gradient = jax.grad(lambda v: made.rewrite(mlp)(v, jnp.zeros((1, 2))).sum())(made.shrink(MLP))
    np.testing.assert_array_equal(gradient["a"], np.zeros((2, 2)))
    weights = {"a": jnp.zeros((2, 2)), "b": jnp.ones((2, 1))}
    gradient = jax.grad(lambda v: made.rewrite(mlp)(v, POINT).sum())(weights)
    np.testing.assert_array_equal(gradient["a"], np.zeros((2, 2)))


def test_transformations_of_the_rewritten_function():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    small, shrunk = made.rewrite(mlp), made.shrink(MLP)
    batch = jnp.asarray(np.random.default_rng(3).standard_normal((5, 2)), jnp.float32)
    expected = mlp(made.mask(MLP), batch)
    each = jax.jit(jax.vmap(lambda x: small(shrunk, x[None])[0]))(batch)
    np.testing.assert_allclose(each, expected, rtol=1e-6)
    per_example = jax.jit(jax.vmap(jax.grad(lambda v, x: small(v, x[None]).sum()), (None, 0)))(shrunk, batch)
    whole = jax.vmap(jax.grad(lambda v, x: mlp(v, x[None]).sum()), (None, 0))(made.mask(MLP), batch)
    np.testing.assert_allclose(per_example["a"], whole["a"][..., [1, 2]], rtol=1e-6)
    np.testing.assert_allclose(jax.checkpoint(small)(shrunk, batch), expected, rtol=1e-6)


def test_export_with_a_symbolic_batch():
    def apply(v, x):
        h = jax.nn.relu(x @ v["a"]).reshape(x.shape[0], 4, -1).reshape(4 * x.shape[0], -1)
        return h.reshape(x.shape[0], -1) @ v["b"]

    made = plan(apply, MLP, POINT, fraction=0.5)
    batch = jax.export.symbolic_shape("batch")[0]
    exported = jax.export.export(jax.jit(made.rewrite(apply)))(made.shrink(MLP), jax.ShapeDtypeStruct((batch, 2), jnp.float32))
    x = jnp.asarray(np.random.default_rng(3).standard_normal((5, 2)), jnp.float32)
    np.testing.assert_allclose(exported.call(made.shrink(MLP), x), apply(made.mask(MLP), x), rtol=1e-6)


def test_sharded_inputs_and_donated_variables():
    made = plan(mlp, MLP, POINT, fraction=0.5)
    mesh = jax.make_mesh((len(jax.devices()),), ("batch",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x = jnp.asarray(np.random.default_rng(3).standard_normal((8, 2)), jnp.float32)
    expected = mlp(made.mask(MLP), x)

    def step(v, x):
        return jax.tree.map(lambda leaf: 2 * leaf, v), made.rewrite(mlp)(v, x)

    doubled, out = jax.jit(step, donate_argnums=0)(made.shrink(MLP), jax.device_put(x, spread))
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert doubled["a"].shape == (2, 2)


def test_plans_in_a_row_are_one_plan():
    first = plan(mlp, MLP, POINT, fraction=0.25)
    small = first.rewrite(mlp)
    second = plan(small, first.shrink(MLP), POINT, fraction=0.34)
    both = first.then(second)
    assert both.removed["a", 1] == (0, 3)
    jax.tree.map(np.testing.assert_array_equal, both.shrink(MLP), second.shrink(first.shrink(MLP)))
    with pytest.raises(ValueError, match="a: must have the shape"):
        second.then(first)


def test_iterative_pruning_reaches_the_fraction(net):
    apply, variables = net
    tuned = []

    def tune(small, given):
        tuned.append(given["params"]["Conv_0"]["kernel"].shape)
        return given

    whole, small = prune_iteratively(
        apply, variables, X, fraction=0.5, steps=2, tune=tune, criterion=lambda apply, v: Norm(), of="macs"
    )
    assert len(tuned) == 2
    assert tuned[1][3] < tuned[0][3] < 8
    jax.tree.map(np.testing.assert_array_equal, whole.shrink(variables), small)


def test_group_sparsity_grows_and_presses_the_small():
    made = plan(mlp, MLP, POINT, fraction=0)
    penalty = GroupSparsity(strength=lambda step: 0.1 * step, alpha=2.0)
    # Squares of the channels: 2 + 1, 4 + 16, 10 + .25, .5 + .0625
    squares = np.array([3.0, 20.0, 10.25, 0.5625])
    sizes = np.sqrt(squares)
    expected = np.sum(2 ** (2 * (sizes.max() - sizes) / (sizes.max() - sizes.min())) * squares) / 2
    for step in (1, 10):
        np.testing.assert_allclose(penalty(made, MLP, step), 0.1 * step * expected, rtol=1e-6)
    gradient = jax.grad(penalty, argnums=1)(made, MLP, 10)
    np.testing.assert_allclose(
        gradient["b"][:, 0] / MLP["b"][:, 0], 2 ** (2 * (sizes.max() - sizes) / np.ptp(sizes)), rtol=1e-5
    )


def test_paths_of_other_trees():
    matcher = Matcher(["params/a/kernel", "params/block/a/kernel", "batch_stats/n/mean", "params/n/mean"])
    assert matcher.find("0/mu/a/kernel") == "params/a/kernel"
    assert matcher.find("0/mu/block/a/kernel") == "params/block/a/kernel"
    assert matcher.find("ema/params/block/a/kernel") == "params/block/a/kernel"
    assert matcher.find("0/count") is None
    with pytest.raises(ValueError, match="it may be any of"):
        matcher.find("mu/n/mean")
    assert Matcher(["a/w", "b/w"]).find("0/mu/w") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.0}, "fraction must be in"),
        ({"fraction": 0.5, "of": "bytes"}, "of must be one of channels, macs, parameters"),
        ({"fraction": 0.5, "ranking": "layer"}, "ranking must be one of"),
        ({"fraction": 0.5, "round_to": 0}, "round_to must be 1 or more"),
        ({"fraction": 0.5, "exclude": "*none"}, "matches no floating leaf"),
        ({"fraction": 0.5, "exclude": "*"}, "no channels to remove that are not excluded"),
        ({"fraction": 0.9, "of": "parameters", "round_to": 2}, "cannot be removed"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(mlp, MLP, POINT, **settings)


def test_bad_plans_and_trees():
    with pytest.raises(ValueError, match=r"kernel\[0\]: would lose all of its 2 channels"):
        Plan(shapes={"kernel": (2,)}, groups=(Group(slices=group(size=2).slices, removed=(0, 1)),))
    made = plan(mlp, MLP, POINT, fraction=0.5)
    with pytest.raises(ValueError, match=r"a: must have the shape \(2, 4\)"):
        made.shrink({"a": jnp.ones((2, 5))})
    with pytest.raises(ValueError, match="no leaf's path ends in that of a variable"):
        made.mask({"other": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"the shrunk variables:\n  a: must have the shape \(2, 2\)"):
        made.rewrite(mlp)(MLP, POINT)
    with pytest.raises(ValueError, match=r"needs a text of Plan\.to_json"):
        Plan.from_json("[]")
    with pytest.raises(TypeError, match="needs the values"):
        plan(mlp, jax.eval_shape(lambda: MLP), POINT, fraction=0.5)
    with pytest.raises(ValueError, match="Gradients must have"):
        plan(mlp, MLP, POINT, fraction=0.5, criterion=Taylor(gradients={"z": jnp.ones(3)}))
    with pytest.raises(TypeError, match="cannot be traced"):
        plan(lambda v, x: x @ v["a"] if x[0, 0] > 0 else x, MLP, POINT, fraction=0.5)


def test_an_unknown_primitive_is_reported_and_the_rest_still_shrinks():
    def apply(v, x):
        return mlp(v, x) + jnp.real(jnp.fft.fft(x @ v["f"], axis=1)).sum(axis=1, keepdims=True)

    variables = {**MLP, "f": jnp.ones((2, 2))}
    made = plan(apply, variables, POINT, fraction=0.5)
    assert made.unknown == ("fft",)
    assert "unknown primitives, whose axes are fixed: fft" in str(made)
    assert made.fixed["f", 1] == ("fft, which has no rule",)
    assert len(made.removed["a", 1]) == 2
