"""What works layer by layer makes the same of a model, however it is written: unrolled or scanned, in either layout."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simple.twins import DEPTHWISE, FAMILIES

from lepton_jax import prune
from lepton_jax.core import paths
from lepton_jax.core.packed import unpack
from lepton_jax.formats import Uniform
from lepton_jax.graph.layers import layers
from lepton_jax.graph.moments import second_moments
from lepton_jax.lowrank import SingularCovarianceWarning, activation_aware, low_rank
from lepton_jax.pruning import sparsegpt_prune
from lepton_jax.pruning.criteria import Wanda
from lepton_jax.quantization import (
    AdaRound,
    Gptq,
    Nearest,
    awq_scale,
    compensate_errors,
    correct_biases,
    equalize,
    quantize_layers,
    smooth_quant,
)

OUT, GROUPS = Uniform(4, channel_axis="out"), Uniform(3, group_size=4)


def quantized(method, fmt, apply, v, x):
    new, reports = quantize_layers(apply, v, [x[:2], x[2:]], fmt, method, sequential=False, progress=False)
    assert set(reports) == set(layers(apply, v, x).uses)
    return new


def scaled(rewrite, apply, v, x):
    new, _ = rewrite(apply, v, x)
    return new


def corrected(fmt, apply, v, x):
    rounded = quantized(Nearest(), fmt, apply, v, x)
    return correct_biases(apply, v, rounded, [x])[0]


def compensated(apply, v, x):
    rounded = quantized(Nearest(), Uniform(2, channel_axis="out"), apply, v, x)
    # Each correction is of what comes before it; here of the rounded model alone.
    return compensate_errors(apply, v, rounded, [x], 1, select="first/*")


def wanda(apply, v, x):
    chosen = layers(apply, v, x).weights
    whole = 1 / 3 if "deep" in str(list(paths.flatten(v))) else 0.5  # of every number of inputs: no ties are broken
    transform = prune(whole, criterion=Wanda(apply=apply, batches=[x]), select=chosen)
    params, state = transform.init(v)
    return transform.view(params, state)


def factored(apply, v, x):
    moments = dict(second_moments(apply, v, [x]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularCovarianceWarning)  # the later layers have few inputs that differ
        method = activation_aware(moments, damping=1e-3).method
    transform = low_rank(2, method=method, select=layers(apply, v, x).weights)
    params, state = transform.init(v)
    return transform.view(params, state)


EXACT = {
    "awq": partial(scaled, lambda apply, v, x: awq_scale(apply, v, [x], GROUPS, candidates=4)),
    "smooth": partial(scaled, lambda apply, v, x: smooth_quant(apply, v, [x])),
    "nearest": partial(quantized, Nearest(), OUT),
    "corrected": partial(corrected, OUT),
    "compensated": compensated,
    "wanda": wanda,
    "activation-aware low rank": factored,
    "equalize": partial(scaled, equalize),
}
ROUNDED = {
    "gptq": partial(quantized, Gptq(), OUT),
    "gptq in groups": partial(quantized, Gptq(activation_order=True), GROUPS),
    "adaround": partial(quantized, AdaRound(steps=40), OUT),
    "sparsegpt": lambda apply, v, x: sparsegpt_prune(apply, v, [x], 0.5, sequential=False, progress=False)[0],
}
CASES = [
    *(("transformer", name) for name in ("awq", "smooth", "corrected", "compensated", "wanda", "activation-aware low rank")),
    *(("transformer", name) for name in ("gptq in groups", "adaround", "sparsegpt")),
    *(("depthwise", name) for name in ("nearest", "corrected", "equalize", "wanda", "gptq", "sparsegpt")),
    ("convolutions", "activation-aware low rank"),
    ("convolutions", "awq"),
]


def close(given, expected):
    return np.isclose(given, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("family", "technique"), CASES)
def test_twins(family, technique):
    twins, draw = DEPTHWISE if family == "depthwise" else FAMILIES[family]
    variables, x = draw(len(technique) + 7, depth=2)
    make = (EXACT | ROUNDED)[technique]
    first, *others = (twins[0], twins[1], twins[3])
    wanted = unpack(make(first.apply, variables, x))
    before, exact = (first.run(v, x) for v in (variables, wanted))
    if technique in ("awq", "smooth", "equalize"):
        assert np.abs(exact - before).max() < 1e-4 * np.abs(before).max()
    for twin in others:
        new = unpack(make(twin.apply, twin.leaves(variables), x))
        expected = paths.flatten(twin.leaves(wanted))
        changed = 0
        for path, leaf in paths.flatten(new).items():
            same = close(np.asarray(leaf), np.asarray(expected[path]))
            assert same.mean() >= (0.98 if technique in ROUNDED else 1), (twin.name, path)
            changed += not np.array_equal(leaf, paths.flatten(twin.leaves(variables))[path])
        assert changed > (0 if technique == "compensated" else 1)
        if technique in EXACT:
            np.testing.assert_allclose(twin.run(new, x), exact, rtol=1e-5, atol=2e-5 * np.abs(exact).max())


def test_a_depthwise_net_is_equalised():
    """Channels of ranges from 100 to 0.01 get the same range on both sides of every relu, layer by layer."""
    variables, x = DEPTHWISE.draw(3)
    twin = DEPTHWISE.twins[1]
    v = twin.leaves(variables)
    new, left = equalize(twin.apply, v, x)
    assert set(left) == {"first/kernel", "layers/a/kernel"}  # fed by the input, and by a residual stream
    scanned = new["layers"]
    made, deep, fed = (np.abs(scanned[name]["kernel"]) for name in ("a", "deep", "b"))
    np.testing.assert_allclose(made.max((1, 2, 3)), deep.max((1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(deep.max((1, 2, 3)), fed.max((1, 2, 4)), rtol=1e-3)
    spread = [np.ptp(np.log(np.abs(tree["layers"]["a"]["kernel"]).max((1, 2, 3)))) for tree in (v, new)]
    assert spread[1] < 0.5 * spread[0]
    np.testing.assert_allclose(twin.run(new, x), twin.run(v, x), rtol=1e-5, atol=1e-5)
    rounded = [
        twin.run(unpack(quantize_layers(twin.apply, tree, [x], Uniform(8), Nearest(), sequential=False, progress=False)[0]), x)
        for tree in (v, new)
    ]
    errors = [np.abs(one - twin.run(v, x)).mean() for one in rounded]
    assert errors[1] < 0.2 * errors[0]


def test_layers_of_a_scan_get_their_means_back():
    """Each is corrected after those before it, as in the unrolled model."""
    twins, draw = DEPTHWISE
    variables, x = draw(4)
    for twin in twins[:2]:
        v = twin.leaves(variables)
        options = {"select": "layers/*kernel", "sequential": False, "progress": False}
        rounded, _ = quantize_layers(twin.apply, v, [x], Uniform(3, channel_axis="out"), Nearest(), **options)
        new, left = correct_biases(twin.apply, v, rounded, [x])
        assert list(left) == ["first/kernel"]
        exact, before, after = (twin.run(unpack(tree), x).mean(0) for tree in (v, rounded, new))
        np.testing.assert_allclose(after, exact, atol=1e-4 * np.abs(exact).max())
        assert np.abs(before - exact).max() > 1e-2 * np.abs(exact).max()


def test_by_default_what_is_no_weight_is_left_alone_and_what_looks_like_one_is_named():
    rng = np.random.default_rng(0)

    def apply(v, tokens):
        x = v["table"][tokens]
        x, _ = jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer["w"]) * layer["scale"][None, None], None), x, v["layers"])
        heads = jnp.einsum("btf,fhd->bthd", x, v["heads"]["w"]) + v["heads"]["bias"][None, None]
        return heads.reshape(*x.shape[:2], -1) @ v["last"] + v["folded"].reshape(-1)[None, None]

    shapes = {
        "table": (9, 4),
        "layers": {"w": (3, 4, 4), "scale": (3, 4)},
        "heads": {"w": (4, 2, 3), "bias": (2, 3)},
        "last": (6, 5),
        "folded": (1, 1, 1, 5),
    }
    v = jax.tree.map(lambda s: jnp.float32(rng.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))
    tokens = jnp.asarray(rng.integers(0, 9, (3, 7)))
    chosen = {"layers/w", "heads/w", "last"}
    new, reports = quantize_layers(apply, v, [tokens], OUT, Gptq(), progress=False)
    assert (set(reports), set(reports.left)) == (chosen, {"table"})
    assert "table" in str(reports)
    assert new["layers"]["w"].format.channel_axis == (0, 2)
    with pytest.warns(UserWarning, match="table: is a table whose rows are looked up"):
        _, masks = sparsegpt_prune(apply, v, [tokens], 0.5, progress=False)
    assert set(masks) == chosen
    for path in chosen:  # no leaf that is not a weight has been touched
        v = paths.replace(v, {path: paths.flatten(unpack(new))[path]})
    jax.tree.map(np.testing.assert_array_equal, unpack(new), v)
    with pytest.raises(ValueError, match="table: reaches none that could be followed"):
        quantize_layers(apply, v, [tokens], OUT, Gptq(), select=("table", "last"), progress=False)
