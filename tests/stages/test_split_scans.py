"""Scans over stacked layers, cut between their steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax import stages
from lepton_jax.core import paths
from lepton_jax.models.transformer import Block
from lepton_jax.stages.cuts import bottleneck
from lepton_jax.stages.program import flat_program, work


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


def decoder(length=8):
    """A Linen decoder under nn.scan."""

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Block(heads=2, mlp=16)(x), x.mean()

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(11, 8)(tokens)
            layers = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=length)
            x, means = layers()(x, None)
            return nn.Dense(11)(nn.LayerNorm()(x)), means

    tokens = jnp.arange(12).reshape(2, 6) % 11
    return Net().apply, Net().init(jax.random.key(0), tokens), (tokens,)


def backwards():
    """A plain scan from its last step to its first, with keys, results of each step, a shared weight, and a second scan."""

    def apply(v, x, key):
        def step(carry, layer):
            (w, b), own = layer
            kept = jax.random.bernoulli(own, 0.9, carry.shape)
            return jnp.tanh(carry @ w + b[None]) * kept @ v["shared"], carry[0]

        keys = jax.random.split(key, 6)
        x, heads = jax.lax.scan(step, x, ((v["w"], v["b"]), keys), reverse=True)
        x, _ = jax.lax.scan(lambda carry, w: (carry + jnp.sin(carry @ w), None), x, v["w"])
        return {"x": x, "heads": heads}

    v = {"w": draw(0, 6, 8, 8), "b": draw(1, 6, 8), "shared": draw(2, 8, 8)}
    return apply, v, (draw(3, 4, 8), jax.random.key(1))


@pytest.mark.parametrize(("model", "count"), [(decoder, 2), (decoder, 4), (backwards, 3)])
def test_a_scan_is_cut_between_layers(model, count):
    apply, v, inputs = model()
    made = stages.plan(apply, v, *inputs, count=count)
    assert stages.verify(made, apply, v, *inputs).bits_differ == 0
    assert any(made.steps)
    macs = [facts.macs for facts in made.stages_of]
    costs = [work(eqn) for eqn in flat_program(apply, v, inputs, None).operations]
    assert max(macs) <= 1.2 * bottleneck(np.array(costs), count)
    read = stages.Plan.from_json(made.to_json())
    assert read == made
    parts = read.split(v)
    run = stages.join(read, [jax.jit(fn) for fn in read.stages(apply)], parts)
    jax.tree.map(np.testing.assert_array_equal, run(*inputs), jax.jit(apply)(v, *inputs))
    jax.tree.map(np.testing.assert_array_equal, read.merge(parts, v), v)


def test_each_stage_holds_its_own_layers_and_gradients_come_together():
    apply, v, inputs = decoder()
    made = stages.plan(apply, v, *inputs, count=2)
    name = "params/ScanStep_0/Block_0/up/kernel"
    rows = [{path: (low, high) for path, low, high in facts.rows}[name] for facts in made.stages_of]
    assert [low for low, _ in rows] == [0, rows[0][1]]
    assert rows[1][1] == 8
    parts = made.split(v)
    assert [part[name].shape[0] for part in parts] == [high - low for low, high in rows]
    sizes = [sum(leaf.size for leaf in part.values()) for part in parts]
    assert sizes == [facts.parameters for facts in made.stages_of]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(v))
    shapes = made.split(jax.eval_shape(lambda: v))
    assert [leaf.shape for part in shapes for leaf in part.values()] == [leaf.shape for part in parts for leaf in part.values()]
    fns = made.stages(apply)

    def loss(parts):
        return jnp.mean(stages.join(made, fns, parts)(*inputs)[0] ** 2)

    grads = made.merge(jax.grad(loss)(parts), jax.tree.map(jnp.zeros_like, v), tied="sum")
    whole = jax.grad(lambda v: jnp.mean(apply(v, *inputs)[0] ** 2))(v)
    for path, leaf in paths.flatten(whole).items():
        np.testing.assert_allclose(paths.flatten(grads)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_stack_that_two_scans_share_is_whole_again():
    apply, v, inputs = backwards()
    made = stages.plan(apply, v, *inputs, count=3)
    parts = made.split(v)
    assert sum("w" in part for part in parts) >= 2
    jax.tree.map(np.testing.assert_array_equal, made.merge(parts, v), v)
    ones = [jax.tree.map(jnp.ones_like, part) for part in parts]
    summed = made.merge(ones, v, tied="sum")["w"]
    read = np.zeros(6)
    for facts in made.stages_of:
        for path, low, high in facts.rows:
            if path == "w":
                read[low:high] += 1
        if "w" in facts.leaves and "w" not in {path for path, _, _ in facts.rows}:
            read += 1
    np.testing.assert_array_equal(summed[:, 0, 0], read)


def test_bytes_of_layers_are_balanced():
    apply, v, inputs = decoder()
    made = stages.plan(apply, v, *inputs, count=2, balance="bytes")
    sizes = [facts.parameters for facts in made.stages_of]
    assert max(sizes) <= 1.2 * sum(sizes) / 2


def test_what_goes_through_inputs_alone_stays_whole():
    def apply(v, xs):
        state, _ = jax.lax.scan(lambda state, x: (jnp.tanh(state @ v["w"] + x), None), jnp.zeros((2, 4)), xs)
        return jnp.sin(state @ v["w"])

    v, xs = {"w": draw(0, 4, 4)}, draw(1, 5, 2, 4)
    made = stages.plan(apply, v, xs, count=2)
    assert made.steps == ()
    assert made.stages_of[0].macs == 5 * 32
    assert stages.verify(made, apply, v, xs).bits_differ == 0


def test_times_that_were_measured_balance_stages():
    def apply(v, x):
        for w in v:
            x = jnp.tanh(x @ w)
        return x

    v = [draw(n, a, b) for n, (a, b) in enumerate(itertools.pairwise((4, 256, 256, 256, 256, 4)))]
    made = stages.plan(apply, v, draw(9, 256, 4), count=2, balance="measured")
    assert all(facts.leaves for facts in made.stages_of)
    assert len(stages.stage_seconds(made, apply, v, draw(9, 256, 4), rounds=1)) == 2
