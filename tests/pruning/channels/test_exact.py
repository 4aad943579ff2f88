"""Shrunk equals masked, for every structure: outputs, updated state and gradients.

The reference is made here: variables masked and cut by numpy from `plan.removed` alone.
"""

import re
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channel_models import MODELS as COUPLED
from indexed_models import INDEXED
from two_pass_models import TWO_PASS

from lepton_jax.core.paths import flatten
from lepton_jax.pruning.channels import Random, plan

# Compiling is most of the time these tests take, and rounding is all that optimisation could change.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RTOL = 1e-5
MODELS = {**COUPLED, **INDEXED, **TWO_PASS}


def by_numpy(tree, removed, *, mask):
    """Set the removed indices to 0, or delete them, in every leaf whose path ends in that of a planned one."""

    def one(path, leaf):
        leaf = np.array(leaf)
        for (planned, axis), indices in removed.items():
            if path == planned or path.endswith(f"/{planned}"):
                if mask:
                    leaf[(slice(None),) * axis + (list(indices),)] = 0
                else:
                    leaf = np.delete(leaf, indices, axis)
        return leaf

    leaves = {path: one(path, leaf) for path, leaf in flatten(tree).items()}
    return jax.tree.unflatten(jax.tree.structure(tree), list(leaves.values()))


def outputs_and_gradients(apply, keywords):
    """A compiled function: outputs, and the gradient of their inner product with `weights`."""

    def loss(variables, weights, *inputs):
        outs = apply(variables, *inputs, **keywords)
        return sum(jnp.sum(o * w) for o, w in zip(jax.tree.leaves(outs), jax.tree.leaves(weights))), outs

    def run(variables, weights, *inputs):
        gradients, outs = jax.grad(loss, has_aux=True, allow_int=True)(variables, weights, *inputs)
        return outs, gradients

    return jax.jit(run, compiler_options=QUICK)


@cache
def model(name):
    apply, variables, inputs, keywords = MODELS[name]()
    shapes = jax.eval_shape(lambda v, *xs: apply(v, *xs, **keywords), variables, *inputs)
    rng = np.random.default_rng(7)
    weights = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    return apply, variables, inputs, keywords, weights, outputs_and_gradients(apply, keywords)


def assert_same(expected, got):
    expected, got = flatten(expected), flatten(got)
    assert list(expected) == list(got)
    largest = max(np.abs(leaf).max(initial=0) for leaf in expected.values())
    for path, leaf in expected.items():
        assert got[path].dtype == leaf.dtype, path
        assert got[path].shape == leaf.shape, path
        scale = max(np.abs(leaf).max(initial=0), 0.1 * largest)
        assert np.abs(leaf - np.asarray(got[path])).max(initial=0) <= RTOL * scale, path


# Three cuts a model, each with a seed of its own; over the models, every cut meets every seed. Near twins have one cut.
TWINS = {"lstm_plain", "nnx_eval", "dropout", "derivative_rules", "transformer_tied", *INDEXED, *TWO_PASS}
CASES = [
    (name, cut, (i + j) % 3)
    for i, name in enumerate(MODELS)
    for j, cut in enumerate((0.3, 0.5, 0.7))
    if cut == 0.5 or name not in TWINS
]


@pytest.mark.parametrize(("name", "fraction", "seed"), CASES)
def test_shrunk_equals_masked(name, fraction, seed):
    apply, variables, inputs, keywords, weights, masked_run = model(name)
    made = plan(apply, variables, *inputs, fraction=fraction, criterion=Random(key=jax.random.key(seed)), keywords=keywords)
    assert made.removed
    assert not made.unknown
    masked, shrunk = (by_numpy(variables, made.removed, mask=mask) for mask in (True, False))
    jax.tree.map(np.testing.assert_array_equal, made.mask(variables), masked)
    jax.tree.map(np.testing.assert_array_equal, made.shrink(variables), shrunk)
    outs, gradients = masked_run(masked, weights, *inputs)
    run = outputs_and_gradients(made.rewrite(apply), keywords)
    small_outs, small_gradients = run(shrunk, by_numpy(weights, made.removed, mask=False), *inputs)
    assert_same(by_numpy(outs, made.removed, mask=False), small_outs)
    assert_same(by_numpy(gradients, made.removed, mask=False), small_gradients)


def test_a_plan_that_removes_nothing_compiles_to_the_same_program():
    apply, variables, inputs, _ = MODELS["densenet"]()
    nothing = plan(apply, variables, *inputs, fraction=0)
    programs = [jax.jit(f, compiler_options=QUICK).lower(variables, *inputs).compile() for f in (apply, nothing.rewrite(apply))]
    operations = [Counter(re.findall(r"= \S+ ([a-z-]+)\(", program.as_text())) for program in programs]
    assert operations[0]["convolution"] or operations[0]["fusion"] or operations[0]["custom-call"]
    assert operations[0] == operations[1]
