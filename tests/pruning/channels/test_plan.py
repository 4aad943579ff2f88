"""Plans: cuts, rankings, text, other trees, other shapes, and everything that must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from channel_models import MODELS
from small_models import MLP, POINT, X, mlp, removed

from lepton_jax.core.paths import flatten
from lepton_jax.graph.cost import cost
from lepton_jax.pruning.channels import (
    Group,
    GroupSparsity,
    Norm,
    Plan,
    Random,
    Slices,
    Taylor,
    plan,
    prune_iteratively,
    verify,
)
from lepton_jax.pruning.channels.match import Matcher


def group(path="kernel", size=4):
    return Group(slices=(Slices(path=path, axis=0, indices=np.arange(size)[:, None]),))


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
        return mlp(v, x) + jax.lax.linalg.qr(x @ v["f"], full_matrices=False)[1].sum(axis=1, keepdims=True)

    variables = {**MLP, "f": jnp.ones((2, 2))}
    made = plan(apply, variables, POINT, fraction=0.5)
    assert made.unknown == ("qr",)
    assert "unknown primitives, whose axes are fixed: qr" in str(made)
    assert made.fixed["f", 1] == ("qr, which has no rule",)
    assert len(made.removed["a", 1]) == 2
