"""A technique makes the same function of a model, however it is written: unrolled or scanned, in either layout of weights."""

from functools import partial

import jax
import numpy as np
import pytest
from simple.twins import FAMILIES

from lepton_jax import compress_model, fake_quant, low_rank, prune, prune_model, quantize_model
from lepton_jax.core import paths
from lepton_jax.core.packed import unpack
from lepton_jax.core.transform import chain
from lepton_jax.formats import Uniform
from lepton_jax.graph.roles import weights
from lepton_jax.lowrank import Fraction, choose_ranks, dora, lora, qlora
from lepton_jax.pruning import erk, uniform
from lepton_jax.pruning.criteria import Lamp, LayerNormalized
from lepton_jax.pruning.sparse_training import dynamic_surgery, rigl, soft_threshold
from lepton_jax.pruning.structures import Filters, NofM
from lepton_jax.quantization import dorefa, lsq
from lepton_jax.simple.model import Model

ONE_CALL = {
    "prune": partial(prune_model, sparsity=0.5),
    "prune by threshold": partial(prune_model, threshold=0.0005),
    "2:4": partial(prune_model, sparsity=0.5, structure=NofM(n=2, m=4)),
    "filters": partial(prune_model, sparsity=0.25, structure=Filters()),
    "erk": partial(prune_model, sparsity=0.7, allocation=erk),
    "global": partial(prune_model, sparsity=0.5, scope="global"),
    "lamp": partial(prune_model, sparsity=0.5, scope="global", criterion=Lamp()),
    "layer normalized": partial(prune_model, sparsity=0.5, scope="global", criterion=LayerNormalized()),
    "4 bits": partial(quantize_model, precision=4),
    "groups": partial(quantize_model, precision=Uniform(4, group_size=4)),
    "a tensor": partial(quantize_model, precision=Uniform(8)),
    "rank 4": partial(compress_model, rank=4),
    "half the rank": partial(compress_model, rank=0.5),
    "rank, then bits": lambda model: quantize_model(compress_model(model, rank=3), 8),
}

OUT = Uniform(4, channel_axis="out")
TRANSFORMS = {
    "prune": lambda w: prune(0.5, select=w),
    "2:4, 4 bits": lambda w: chain(
        prune(0.5, structure=NofM(n=2, m=4), select=w), fake_quant(Uniform(4, channel_axis="out"), select=w)
    ),
    "a tensor": lambda w: fake_quant(Uniform(4), select=w),
    "bits": lambda w: fake_quant(4, select=w),
    "lsq": lambda w: lsq(OUT, select=w),
    "dorefa": lambda w: dorefa(4, scale="kept", select=w),
    "low rank": lambda w: low_rank(Fraction(fraction=0.5), select=w),
    "factors in 4 bits": lambda w: chain(low_rank(3, select=w), fake_quant(OUT, select=w)),
    "lora": lambda w: lora(2, jax.random.key(0), select=w),
    "qlora": lambda w: qlora(2, jax.random.key(0), select=w),
    "loftq": lambda w: qlora(2, jax.random.key(0), rounds=2, select=w),
    "dora": lambda w: dora(2, jax.random.key(0), select=w),
}


SPARSE = {
    "surgery": lambda w: dynamic_surgery(0.2, jax.random.key(0), end=9, select=w),
    "soft thresholds": lambda w: soft_threshold(initial=-6.0, select=w),
}
TRANSFORMS |= SPARSE


def same(results):
    first, *others = results
    assert np.isfinite(first).all()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5, atol=2e-5 * np.abs(first).max())


@pytest.mark.filterwarnings("ignore::lepton_jax.pruning.UnevenWarning")  # one of the layers has small weights, on purpose
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("technique", ONE_CALL)
def test_one_call(technique, family):
    twins, draw = FAMILIES[family]
    variables, x = draw(len(technique))
    dense, made = [], []
    for twin in twins:
        model = Model(twin.apply, twin.leaves(variables), (x,))
        dense.append(twin.run(model.dense, x))
        made.append(twin.run(ONE_CALL[technique](model).dense, x))
    same(dense)
    same(made)
    assert np.abs(made[0] - dense[0]).max() > 1e-6 * np.abs(dense[0]).max()  # something was done


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_with_the_weights_of_the_function(name, family):
    twins, draw = FAMILIES[family]
    variables, x = draw(len(name) + 50)
    made, packed = [], []
    for twin in twins:
        leaves = twin.leaves(variables)
        transform = TRANSFORMS[name](weights(twin.apply, leaves, x))
        params, state = transform.init(leaves)
        made.append(twin.run(transform.view(params, state), x))
        packed.append(twin.run(unpack(transform.pack(params, state)), x))
        np.testing.assert_allclose(packed[-1], made[-1], rtol=1e-6, atol=1e-6)
    same(made)


def test_ranks_are_those_of_each_weight():
    twins, draw = FAMILIES["transformer"]
    variables, x = draw(5)
    numbers = []
    for twin in twins:
        leaves = twin.leaves(variables)
        report = choose_ranks(leaves, Fraction(fraction=0.25), select=weights(twin.apply, leaves, x))
        numbers.append(sum(choice.factored if choice.rank else choice.dense for choice in report.choices))
    assert len(set(numbers)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_of_small_weights_is_not_rounded_away(family):
    twins, draw = FAMILIES[family]
    variables, x = draw(9)
    for twin in twins:
        leaves = twin.leaves(variables)
        rounded = paths.flatten(quantize_model(Model(twin.apply, leaves, (x,)), 4).dense)
        for path, leaf in paths.flatten(leaves).items():
            if path.endswith("kernel"):
                layers = leaf if "scanned" in twin.name and "layers" in path else leaf[None]
                error = np.abs(np.asarray(rounded[path]).reshape(layers.shape) - layers).reshape(len(layers), -1)
                assert (error.max(1) < 0.1 * np.abs(layers).reshape(len(layers), -1).max(1)).all(), path
            else:
                np.testing.assert_array_equal(rounded[path], leaf)


def test_rigl_exchanges_within_each_weight():
    """Its first masks are drawn, so twins differ; every weight of a stack keeps as many."""
    twins, draw = FAMILIES["transformer"]
    variables, x = draw(3)
    scanned = twins[1]
    leaves = scanned.leaves(variables)
    transform = rigl(0.5, jax.random.key(0), end=9, interval=1, allocation=uniform, select=weights(scanned.apply, leaves, x))
    params, state = transform.init(leaves)
    for step in range(3):
        rng = np.random.default_rng(step)
        grads = jax.tree.map(lambda leaf: jax.numpy.float32(rng.normal(size=leaf.shape)), leaves)  # noqa: B023
        before = state.masks
        params, state = transform.update(params, state, grads, step)
        assert len(state.masks) == 8
        for path, mask in state.masks.items():
            stack = mask if "layers" in path else mask[None]
            assert set(np.asarray(stack.reshape(len(stack), -1).sum(1)).tolist()) == {stack[0].size // 2}
            assert step == 0 or bool((mask != before[path]).any()), path
