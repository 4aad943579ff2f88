"""Splitting models of many kinds: the same bits, balanced, and what a plan refuses."""

import itertools
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from lepton_jax import Model, quantize_model, stages
from lepton_jax.artifact import ArtifactError
from lepton_jax.core import paths
from lepton_jax.models import LeNet5, ResNetCifar, Transformer
from lepton_jax.native import packed
from lepton_jax.stages.cuts import bottleneck, find_cuts

KEY = jax.random.key(0)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linen(net, x, **static):
    return lambda v, x: net.apply(v, x, **static), net.init(jax.random.key(1), x), (x,)


def nnx_net():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(4)])
            self.norm = nnx.BatchNorm(6, rngs=rngs, use_running_average=True)

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return self.norm(x)

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return lambda v, x: nnx.merge(graph, v)(x), state, (draw(1, 5, 6),)


def scanned():
    def apply(v, x):
        x, extra = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x @ v["in"], v["layers"])
        return {"out": x @ v["out"], "sums": extra}

    v = {"in": draw(2, 5, 8), "layers": draw(3, 3, 8, 8), "out": draw(4, 8, 2)}
    return apply, v, (draw(5, 4, 5),)


def odd():
    """Names with slashes, a tied table, an unread leaf, NaN, length 1, a branch, a loop, a literal and an untouched output."""

    def apply(v, tokens, scale):
        x = v["mlp/~/embed"]["w"][tokens] * scale
        x = jax.lax.cond(x[0, 0, 0] > 0, lambda x: x * 2, lambda x: x - v["one"], x)
        _, x = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))
        x = jax.checkpoint(lambda x: jnp.exp(x) @ v["mid dle"])(x)
        return (x @ v["mlp/~/embed"]["w"].T, v["one"], 3, tokens)

    v = {
        "mlp/~/embed": {"w": draw(6, 7, 4)},
        "mid dle": draw(7, 4, 4).at[0, 0].set(jnp.nan),
        "one": jnp.ones((1, 1, 1)),
        "un*read": draw(8, 3),
    }
    return apply, v, (jnp.array([[0, 3, 6]]), jnp.float32(0.5))


class Weights(NamedTuple):
    first: list
    last: tuple


def equinox_like():
    """Weights in (out, in) in a tree of lists and tuples, an input that is a dict, with dropout by a key."""

    def apply(v, batch, key):
        x = batch["x"]
        for w, b in v.first:
            x = jax.nn.gelu(jnp.einsum("oi,ni->no", w, x) + b[None])
        x = x * jax.random.bernoulli(key, 0.8, x.shape)
        return x @ v.last[0].T

    v = Weights([(draw(9 + n, 6, 6), draw(20 + n, 6)) for n in range(3)], (draw(30, 2, 6),))
    return apply, v, ({"x": draw(31, 4, 6)}, KEY)


MODELS = {
    "nnx": nnx_net,
    "scan": scanned,
    "odd": odd,
    "equinox": equinox_like,
    "lenet": lambda: linen(LeNet5(), draw(40, 2, 28, 28, 1)),
    "resnet": lambda: linen(ResNetCifar(depth=8, features=4), draw(41, 4, 16, 16, 3)),
    "resnet in training": lambda: linen(
        ResNetCifar(depth=8, features=4), draw(42, 4, 16, 16, 3), train=True, mutable=["batch_stats"]
    ),
    "transformer": lambda: linen(Transformer(vocabulary=11, depth=2, width=16, heads=2), jnp.arange(12).reshape(2, 6) % 11),
}


def bits(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
        for x in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_stages_give_the_bits_of_the_whole(name):
    apply, v, inputs = MODELS[name]()
    for count in (1, 3):
        made = stages.plan(apply, v, *inputs, count=count)
        assert len(made) == len(made.split(v)) == count
        found = stages.verify(made, apply, v, *inputs)
        assert found.bits_differ == 0, found
        read = stages.Plan.from_json(made.to_json())
        assert read == made
        parts = read.split(v)  # what tells a plan from JSON the form of a tree
        fns = [jax.jit(fn) for fn in read.stages(apply)]
        carried = inputs
        for fn, part in zip(fns, parts):
            carried = fn(part, *carried)
            assert fn is fns[-1] or isinstance(carried, tuple)
        whole = jax.jit(apply)(v, *inputs)
        assert jax.tree.structure(carried) == jax.tree.structure(whole)
        assert bits(carried) == bits(whole)
        used = {path for part in parts for path in part}
        assert used | set(made.unread) == set(paths.flatten(v))
        assert not used & set(made.unread)
        merged = made.merge(parts, v)
        assert jax.tree.structure(merged) == jax.tree.structure(v)
        assert bits(merged) == bits(v)


def test_a_quantized_model_is_split_with_its_packed_leaves():
    apply, v, inputs = MODELS["lenet"]()
    small = quantize_model(Model(apply, v, inputs), 4)
    run = packed(small.apply)
    made = stages.plan(run, small.variables, *inputs, count=3)
    assert "params/Conv_1/kernel/words" in made.stages_of[1].leaves + made.stages_of[0].leaves
    assert stages.verify(made, run, small.variables, *inputs).bits_differ == 0
    assert made.merge(made.split(small.variables), small.variables)["params"]["Dense_0"]["kernel"].format.bits == 4


def test_shapes_are_enough_for_a_plan():
    apply, v, inputs = MODELS["resnet"]()
    shapes = jax.eval_shape(lambda: (v, inputs))
    assert stages.plan(apply, shapes[0], *shapes[1], count=3) == stages.plan(apply, v, *inputs, count=3)


def test_gradients_by_stage_are_those_of_the_whole_and_tied_ones_are_summed():
    def apply(v, x):
        return jnp.tanh(jnp.tanh(x @ v["tied"]) @ v["own"]) @ v["tied"]

    v, x = {"tied": draw(1, 4, 4), "own": draw(2, 4, 4), "unread": draw(3, 2)}, draw(4, 3, 4)
    made = stages.plan(apply, v, x, count=3)
    fns, parts = made.stages(apply), made.split(v)
    assert sum("tied" in part for part in parts) == 2
    assert made.unread == ("unread",)
    assert "not read: unread" in str(made)
    grads = jax.grad(lambda parts: jnp.sum(stages.join(made, fns, parts)(x) ** 2))(parts)
    whole = jax.grad(lambda v: jnp.sum(apply(v, x) ** 2))(v)
    joined = made.merge(grads, jax.tree.map(jnp.zeros_like, v), tied="sum")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), joined, whole)
    # Each part has an optimiser of its own.
    step = optax.sgd(0.1)
    updates, _ = step.update(grads[1], step.init(parts[1]), parts[1])
    assert updates.keys() == parts[1].keys()


@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    costs, penalties = rng.random(9) * rng.integers(0, 4, 9), rng.integers(0, 50, 10).astype(float)
    for count in (1, 2, 3, 4):
        every = list(itertools.combinations(range(1, 9), count - 1))
        dearest = {cuts: max(costs[a:b].sum() for a, b in itertools.pairwise([0, *cuts, 9])) for cuts in every}
        best = min(dearest.values())
        assert bottleneck(costs, count) == pytest.approx(best, abs=1e-12)
        allowed = {cuts for cuts in every if dearest[cuts] <= 1.15 * best + 1e-9}
        cuts = find_cuts(costs, penalties, count)
        assert cuts in allowed
        assert penalties[list(cuts)].sum() == min(penalties[list(one)].sum() for one in allowed)


def test_balance_of_macs_bytes_and_times():
    def apply(v, x):
        for w in v["layers"]:
            x = jnp.tanh(x @ w)
        return x

    widths = (4, 4, 4, 40, 4)
    v = {"layers": [draw(n, a, b) for n, (a, b) in enumerate(itertools.pairwise(widths))]}
    x = draw(9, 2, 4)
    macs = stages.plan(apply, v, x, count=2)
    assert [facts.leaves for facts in macs.stages_of] == [("layers/0", "layers/1", "layers/2"), ("layers/3",)]
    assert [facts.macs for facts in macs.stages_of] == [2 * (16 + 16 + 160), 2 * 160]
    assert [facts.parameters for facts in macs.stages_of] == [192, 160]
    assert stages.plan(apply, v, x, count=2, balance="bytes").cuts == macs.cuts
    times = stages.plan(apply, v, x, count=2, balance=lambda eqn: 1.0)
    assert times.cuts == (4,)
    assert times.stages_of[0].bytes_out == times.stages_of[1].bytes_in == 2 * 4 * 4


def test_other_numbers_of_examples():
    apply, v, (x,) = MODELS["resnet"]()
    made = stages.Plan.from_json(stages.plan(apply, v, x, count=4).to_json())
    fns, parts = made.stages(apply), made.split(v)
    for few in (x[:1], jnp.concatenate([x, x, x])):
        np.testing.assert_allclose(stages.join(made, fns, parts)(few), apply(v, few), rtol=1e-5, atol=1e-6)


def test_files_run_without_the_code_and_damage_is_named(tmp_path):
    apply, v, (x,) = MODELS["resnet"]()
    made = stages.plan(apply, v, x, count=3)
    stages.save(tmp_path / "net", made, apply, v, x)
    saved = stages.load(tmp_path / "net")
    assert bits(saved(x)) == bits(jax.jit(apply)(v, x))
    np.testing.assert_allclose(saved(x[:2]), apply(v, x[:2]), rtol=1e-5, atol=1e-6)
    manifest = json.loads((tmp_path / "net" / "stages.json").read_text())
    assert [row["to"] for row in manifest["stages"]] == [1, 2, "the caller"]
    assert manifest["stages"][0]["returns"] == manifest["stages"][1]["takes"]
    sizes = [sum(x.size for x in jax.tree.leaves(unit.variables)) for unit in saved.units]
    assert sizes == [facts.parameters for facts in made.stages_of]

    def changed(name, text):
        manifest["stages"][1]["file"] = name
        (tmp_path / "net" / "stages.json").write_text(text or json.dumps(manifest))
        with pytest.raises(ArtifactError) as error:
            stages.load(tmp_path / "net")
        return str(error.value)

    assert "is no name of a stage's file" in changed("../../etc/passwd", None)
    assert "is no name of a stage's file" in changed(3, None)
    assert "is not the file of the manifest" in changed("stage_2.lepton", None)
    assert "cannot be read" in changed("stage_7.lepton", None)
    assert "cannot be read as JSON" in changed("stage_1.lepton", "{")
    assert "no list of stages" in changed("stage_1.lepton", '{"version": 1, "stages": 3}')
    with pytest.raises(ArtifactError, match="the folder holds no stages"):
        stages.load(tmp_path)


def test_wrong_calls_say_what_to_do():
    apply, v, (x,) = MODELS["resnet"]()
    made = stages.plan(apply, v, x, count=2)
    fns, parts = made.stages(apply), made.split(v)
    carried = fns[0](parts[0], x)
    other = {"params": {"kernel": draw(0, 3, 3)}}
    cases = [
        (lambda: stages.plan(apply, v, x, count=0), "plan: count must be"),
        (lambda: stages.plan(apply, v, x, count=10**6), "is more than the .* operations between which there can be cuts"),
        (
            lambda: stages.plan(apply, v, x, count=2, balance="time"),
            'balance must be "macs", "bytes", "measured", or a function',
        ),
        (lambda: stages.plan(apply, v, x, count=2, balance=lambda eqn: float("nan")), "balance must give costs of 0 or more"),
        (lambda: made.split(other), "these are not the variables of the plan"),
        (lambda: made.merge(parts[:1], v), "2 parts are needed"),
        (lambda: stages.join(made, fns[:1], parts), "2 functions and parts are needed"),
        (lambda: fns[1](parts[1], *carried[:-1]), "stage_1 takes .* values; got"),
        (lambda: fns[1](parts[1], *[c[..., :1] for c in carried]), "stage_1 takes what the stage before returns; got value 0"),
        (lambda: fns[0](parts[1], x), "the stage needs the variables"),
        (lambda: fns[0](parts[0], x, x), "stage_0 takes the inputs"),
        (lambda: made.stages(lambda v, x: x + 1)[0](parts[0], x), "this function has other operations .* plan it anew"),
        (lambda: stages.Plan.from_json("{}"), "this is no plan of stages"),
        (lambda: stages.Plan.from_json("[1"), "this is no plan of stages"),
    ]
    for call, said in cases:
        with pytest.raises((ValueError, TypeError), match=re.compile(said)):
            call()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_plan_is_drawn(kind, tmp_path):
    apply, v, inputs = MODELS["odd"]()
    made = stages.plan(apply, v, *inputs, count=2)
    made.draw(tmp_path / f"plan.{kind}")
    assert (tmp_path / f"plan.{kind}").stat().st_size > 5000


def test_a_plan_prints_and_linen_names_are_the_models():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(nn.relu(nn.Dense(8, name="body")(x)))

    net, x = Net(), draw(0, 4, 3)
    v = net.init(KEY, x)
    text = str(stages.plan(net.apply, v, x, count=2))
    assert re.search(r"^0 +3 +Net/body/dot_general +Net/\S+ +2 +32 +96 +60\.0 % +48 +128$", text, re.M)
    assert re.search(r"^1 +2 +Net/head/dot_general +Net/head/add +2 +18 +64 +40\.0 % +128 +32$", text, re.M)
