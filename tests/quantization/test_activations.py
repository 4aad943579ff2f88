"""Quantized activations: values against float64, integers against simulation, models of every kind, derivatives."""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from uniform_by_hand import codes_of, rounded

from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.native import packed
from lepton_jax.precision import Policy, autocast
from lepton_jax.quantization import (
    Dynamic,
    Float8,
    LearnedStep,
    MovingAverage,
    Pact,
    Percentile,
    Rule,
    Static,
    Uniform,
    calibrate_activations,
    calibrated,
    fake,
    quantize,
    quantize_activations,
    with_sites,
)

WEIGHTS = Rule(argument="weight", quantizer=Dynamic(Uniform(8)), free_axes=True)


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(actual: object, expected: object, tolerance: float = 1e-6) -> None:
    """Within a tolerance relative to the largest value."""
    expected = np.asarray(expected)
    assert np.abs(np.asarray(actual) - expected).max() <= tolerance * np.abs(expected).max()


def dense(v: dict, x: jax.Array) -> jax.Array:
    return x @ v["w"].T


@pytest.mark.parametrize("fmt", [Uniform(8), Uniform(3, narrow_range=True), Uniform(4, False)], ids=str)
def test_dynamic_values_against_float64(fmt: Uniform) -> None:
    w, x = draw(0, 5, 7), draw(1, 3, 7)
    wide_w, wide_x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    for rules, expected in (
        (Rule(quantizer=Dynamic(fmt)), rounded(wide_x, fmt, (0, 1)) @ wide_w.T),
        (Rule(quantizer=Dynamic(fmt), free_axes=True), rounded(wide_x, fmt, (1,)) @ wide_w.T),
        (Rule(argument="rhs", quantizer=Dynamic(fmt)), wide_x @ rounded(wide_w, fmt, (0, 1)).T),
        ([Rule(quantizer=Dynamic(fmt)), WEIGHTS], rounded(wide_x, fmt, (0, 1)) @ rounded(wide_w, Uniform(8), (1,)).T),
    ):
        assert_close(quantize_activations(dense, rules)({"w": w}, x), expected)


def test_static_ranges_over_batches_against_float64() -> None:
    w, batches = draw(0, 5, 7), [draw(1, 4, 7), 3 * draw(2, 2, 7)]
    wide = [np.asarray(b, np.float64) for b in batches]
    x, fmt = draw(3, 6, 7), Uniform(6, False)
    ends = np.array([[min(b.min(), 0), max(b.max(), 0)] for b in wide])
    averaged = 0.75 * ends[0] + 0.25 * ends[1]
    for calibration, (low, high) in ((None, (ends[:, 0].min(), ends[:, 1].max())), (MovingAverage(decay=0.75), averaged)):
        rule = Rule(quantizer=Static(fmt, calibration))
        sites = calibrate_activations(dense, rule, {"w": w}, iter(batches))
        assert {name: sorted(site["lhs"]) for name, site in sites.items()} == {"dot_general": ["scale", "zero_point"]}
        variables = with_sites({"w": w}, sites)
        expected = rounded(np.asarray(x, np.float64), fmt, (), low, high) @ np.asarray(w, np.float64).T
        assert_close(quantize_activations(dense, rule)(variables, x), expected)


def test_groups_along_the_summed_axis_and_channels() -> None:
    w, x, fmt = draw(0, 4, 6), draw(1, 3, 6), Uniform(4, group_size=4, group_axis=-1)
    rules = [Rule(quantizer=Static(fmt)), Rule(argument="weight", quantizer=Dynamic(Uniform(4, group_size=4, group_axis=0)))]
    sites = calibrate_activations(dense, rules, {"w": w}, [x, 0.5 * x])
    assert sites["dot_general"]["lhs"]["scale"].shape == (3, 2)

    def parts(a: jax.Array) -> np.ndarray:
        a = np.asarray(a, np.float64)
        return np.concatenate([rounded(a[:, :4], Uniform(4), (1,)), rounded(a[:, 4:], Uniform(4), (1,))], 1)

    variables, expected = with_sites({"w": w}, sites), parts(x) @ parts(w).T
    assert_close(quantize_activations(dense, rules)(variables, x), expected)
    assert_close(quantize_activations(dense, rules, native=True)(variables, x), expected)


def tower(v: dict, x: jax.Array) -> jax.Array:
    """Dots in a scan with remat, in a branch, in an einsum; weights transposed, cast and scaled."""
    h = jax.nn.relu(x @ v["first"].T)
    h, _ = jax.lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ (2 * w)), None)), h, v["layers"])
    h = jax.lax.cond(jnp.sum(x) > -1e9, lambda h: h @ v["branch"], lambda h: h, h)
    return jnp.einsum("bi,ohi->boh", h, v["heads"].astype(jnp.bfloat16).astype(jnp.float32))


def tower_variables() -> dict:
    shapes = {"first": (8, 6), "layers": (2, 8, 8), "branch": (8, 8), "heads": (3, 2, 8)}
    return {name: draw(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("fmt", [Uniform(8), Uniform(8, narrow_range=True), Uniform(8, False)], ids=str)
def test_integers_are_the_simulation(fmt: Uniform) -> None:
    v, x = tower_variables(), draw(10, 5, 6)
    rules = [Rule(quantizer=Static(fmt, Percentile(q=99))), WEIGHTS]
    sites = calibrate_activations(tower, rules, v, [x])
    assert sorted(site["lhs"]["scale"].shape for site in sites.values()) == [(1, 1), (1, 1), (1, 1), (2, 1, 1)]
    variables = with_sites(v, sites)
    simulated = jax.jit(quantize_activations(tower, rules))(variables, x)
    native = jax.jit(quantize_activations(tower, rules, native=True))
    np.testing.assert_array_equal(native(variables, x), simulated)
    assert 0 < np.abs(simulated - tower(v, x)).max() < 0.1 * np.abs(tower(v, x)).max()
    assert native.lower(variables, x).as_text().count("(tensor<5x8xi8>, ") >= 2


def test_integers_meet_packed_weights() -> None:
    v, x = tower_variables(), draw(9, 5, 6)
    del v["branch"], v["heads"]

    def apply(v: dict, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ v["first"].T, v["layers"])[0]

    leaves = {"first": quantize(v["first"], Uniform(4, channel_axis=0)), "layers": quantize(v["layers"], Uniform(8, False))}
    rules = [Rule(quantizer=Static(Uniform(8, False)))]
    sites = calibrate_activations(apply, rules, v, [x])
    shown = with_sites({name: leaf.unpack() for name, leaf in leaves.items()}, sites)
    simulated = jax.jit(quantize_activations(apply, rules))(shown, x)
    compressed = with_sites(leaves, sites)
    as_they_are = quantize_activations(apply, rules, native=True)
    around = packed(quantize_activations(apply, rules))
    for function in (as_they_are, around, quantize_activations(packed(apply), rules, native=True)):
        lowered = jax.jit(function).lower(compressed, x)
        assert "(tensor<5x6xi8>, tensor<6x8xi8>) -> tensor<5x8xi32>" in lowered.as_text()
        assert_close(lowered.compile()(compressed, x), simulated)
    np.testing.assert_array_equal(
        jax.jit(as_they_are)(compressed, x), jax.jit(quantize_activations(apply, rules))(compressed, x)
    )
    # A rule for weights passes packed ones over: they have been rounded once.
    with_weights = [*rules, Rule(argument="weight", quantizer=Dynamic(Uniform(2)))]
    np.testing.assert_array_equal(quantize_activations(apply, with_weights)(compressed, x), as_they_are(compressed, x))


def test_gradients_go_straight_through_and_to_learned_steps() -> None:
    w, x = draw(0, 5, 7), draw(1, 3, 7)
    rules = [Rule(quantizer=LearnedStep(Uniform(4))), Rule(argument="weight", quantizer=Dynamic(Uniform(4)))]
    sites = calibrate_activations(dense, rules, {"w": w}, [x])
    f = quantize_activations(dense, rules)

    def loss(variables: dict, x: jax.Array) -> jax.Array:
        return jnp.sum(f(variables, x) ** 2)

    grads, dx = jax.jit(jax.grad(loss, (0, 1)))(with_sites({"w": w}, sites), x)
    step = np.asarray(sites["dot_general"]["lhs"]["step"], np.float64)
    place = np.asarray(x, np.float64) / step
    codes = codes_of(np.asarray(x, np.float64), step, 0, Uniform(4))
    qx, qw = codes * step, rounded(np.asarray(w, np.float64), Uniform(4), (0, 1))
    out = 2 * (qx @ qw.T)
    assert_close(grads["w"], out.T @ qx, 1e-5)
    inside = (place > -8) & (place < 7)
    assert_close(dx, np.where(inside, out @ qw, 0), 1e-5)
    slope = np.where(inside, codes - place, np.clip(place, -8, 7))
    factor = 1 / np.sqrt(7 * 7)  # 7 features share the step, whose highest integer is 7
    assert_close(grads["quantization"]["dot_general"]["lhs"]["step"], factor * np.sum((out @ qw) * slope).reshape(1, 1), 1e-4)


@pytest.mark.parametrize("derivative", ["rounded", "unrounded"])
def test_the_derivative_is_at_the_rounded_operands_or_at_the_given_ones(derivative: str) -> None:
    w, x, slope = draw(0, 5, 7), draw(1, 3, 7), draw(2, 3, 5)
    rules = [Rule(quantizer=Dynamic(Uniform(3))), Rule(argument="weight", quantizer=Dynamic(Uniform(3)))]
    apply = quantize_activations(dense, rules, native=True, derivative=derivative)
    loss, (dw, dx) = jax.jit(jax.value_and_grad(lambda w, x: jnp.sum(slope * apply({"w": w}, x)), argnums=(0, 1)))(w, x)
    wide = [np.asarray(a, np.float64) for a in (w, x, slope)]
    held = [rounded(a, Uniform(3), (0, 1)) for a in wide[:2]]
    assert_close(loss, np.sum(wide[2] * (held[1] @ held[0].T)), 1e-5)
    seen = held if derivative == "rounded" else wide[:2]
    assert_close(dw, wide[2].T @ seen[1], 1e-5)
    assert_close(dx, wide[2] @ seen[0], 1e-5)


def test_nan_is_seen_in_all_that_shares_its_range() -> None:
    w, x = draw(0, 5, 7), draw(1, 3, 7).at[1, 2].set(jnp.nan)
    out = quantize_activations(dense, Rule(quantizer=Dynamic(Uniform(8)), free_axes=True))({"w": w}, x)
    assert jnp.isnan(out).all(1).tolist() == [False, True, False]


def test_vmap_jit_and_a_warm_cache_change_nothing() -> None:
    w, x = {"w": draw(0, 5, 7)}, draw(1, 4, 3, 7)
    inner = jax.jit(dense)
    inner(w, x[0]).block_until_ready()
    f = quantize_activations(inner, [Rule(quantizer=Dynamic(Uniform(3))), WEIGHTS])
    each = [f(w, one) for one in x]
    np.testing.assert_array_equal(jax.jit(f)(w, x[0]), each[0])
    np.testing.assert_array_equal(jax.vmap(f, (None, 0))(w, x), jnp.stack(each))
    assert np.abs(each[0] - inner(w, x[0])).max() > 0.01
    np.testing.assert_array_equal(inner(w, x[0]), dense(w, x[0]))


class Tied(nn.Module):
    """A convolution over embeddings, which are also the last weights."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(9, 4)
        return embed.attend(nn.relu(nn.Conv(4, (3,))(embed(tokens))))


def test_linen_convolution_and_tied_embeddings() -> None:
    model, tokens = Tied(), jnp.arange(10).reshape(2, 5) % 9
    v = jax.jit(model.init)(jax.random.key(0), tokens)
    fmt = Uniform(8)
    rules = [
        Rule(operation=("gather", "*attend"), argument="weight", quantizer=Dynamic(fmt)),
        Rule(quantizer=Static(Uniform(8, False))),
        WEIGHTS,
    ]
    variables = with_sites(v, calibrate_activations(model.apply, rules, v, [tokens]))
    simulated = jax.jit(quantize_activations(model.apply, rules))(variables, tokens)
    np.testing.assert_array_equal(jax.jit(quantize_activations(model.apply, rules, native=True))(variables, tokens), simulated)
    # The same rounded table looked up, and as the last weight.
    table = jnp.asarray(rounded(np.asarray(v["params"]["Embed_0"]["embedding"], np.float64), fmt, (0, 1)), jnp.float32)
    tied = jax.tree.map(lambda leaf: table if leaf.shape == table.shape else leaf, v)
    as_is = Rule(operation="*attend", argument="weight", quantizer=None)
    shown = quantize_activations(model.apply, [as_is, *rules[1:]])(with_sites(tied, variables["quantization"]), tokens)
    assert_close(shown, simulated)


def test_nnx_and_plain_functions_of_several_inputs() -> None:
    model = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    rules = [Rule(quantizer=Static(Uniform(8))), WEIGHTS]
    x = draw(1, 4, 6)

    def apply(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    variables = with_sites(state, calibrate_activations(apply, rules, state, [x]))
    assert isinstance(variables, nnx.State)
    kernel, bias = (np.asarray(part[...], np.float64) for part in (model.kernel, model.bias))
    expected = rounded(np.asarray(x, np.float64), Uniform(8), (0, 1)) @ rounded(kernel, Uniform(8), (0,)) + bias
    assert_close(quantize_activations(apply, rules)(variables, x), expected)

    def two(_: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("bi,ci->bc", x, y)

    rule = Rule(quantizer=Dynamic(Uniform(8)))
    expected = np.einsum("bi,ci->bc", *(rounded(np.asarray(a, np.float64), Uniform(8), (0, 1)) for a in (x, x[::-1])))
    assert_close(quantize_activations(two, rule, native=True)({}, x, x[::-1]), expected)


def test_half_precision_keeps_its_dtype_and_other_formats_are_simulated() -> None:
    w, x = {"w": draw(0, 5, 7).astype(jnp.bfloat16)}, draw(1, 3, 7).astype(jnp.bfloat16)
    rules = [Rule(quantizer=Dynamic(Uniform(8))), WEIGHTS]
    assert quantize_activations(dense, rules)(w, x).dtype == jnp.bfloat16
    wide = [Rule(quantizer=Dynamic(Uniform(16))), WEIGHTS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = quantize_activations(dense, wide, native=True)({"w": draw(0, 5, 7)}, draw(1, 3, 7))
    expected = np.asarray(draw(1, 3, 7), np.float64) @ rounded(np.asarray(draw(0, 5, 7), np.float64), Uniform(8), (1,)).T
    assert_close(out, expected, 1e-4)


@pytest.mark.parametrize(
    "quantizer",
    [Pact(4), LearnedStep(Uniform(4, signed=False)), LearnedStep(Uniform(3, False)), Static(Float8())],
    ids=["pact", "learned", "learned affine", "float8"],
)
def test_every_quantizer_runs_natively_as_it_is_simulated(quantizer: object) -> None:
    w, x = {"w": draw(0, 5, 7)}, jnp.abs(draw(1, 3, 7))
    fmt = Float8() if isinstance(quantizer.format, Float8) else Uniform(8)
    rules = [Rule(quantizer=quantizer), Rule(argument="weight", quantizer=Dynamic(fmt))]
    variables = with_sites(w, calibrate_activations(dense, rules, w, [0.9 * x]))
    function = quantize_activations(dense, rules, native=True)
    native = function(variables, x)
    kind = "i8" if fmt.is_integer else "f8E4M3FN"
    assert f"(tensor<3x7x{kind}>, tensor<7x5x{kind}>)" in jax.jit(function).lower(variables, x).as_text()
    assert_close(native, quantize_activations(dense, rules)(variables, x), 0 if fmt.is_integer else 1e-6)
    site = variables["quantization"]["dot_general"]["lhs"]
    seen_w = fake(w["w"], fmt, *calibrated(w["w"], fmt))
    assert_close(native, np.asarray(quantizer(x, site), np.float64) @ np.asarray(seen_w, np.float64).T)


def test_with_bfloat16_low_rank_and_scans_in_scans() -> None:
    def nested(v: dict, x: jax.Array) -> jax.Array:
        def outer(x: jax.Array, ws: jax.Array) -> tuple:
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None

        return jax.lax.scan(outer, x, v["w"])[0]

    v, x = {"w": draw(0, 2, 3, 4, 4)}, draw(1, 5, 4)
    rules = [Rule(quantizer=Static(Uniform(8))), WEIGHTS]
    half = autocast(nested, Policy(compute_dtype="bfloat16"))
    sites = calibrate_activations(half, rules, v, [x])
    [scale] = [site["lhs"]["scale"] for site in sites.values()]
    assert scale.shape == (2, 3, 1, 1)
    assert_close(scale[0, 0], np.abs(x.astype(jnp.bfloat16)).max().astype(jnp.float32).reshape(1, 1) / 127.5)
    out = quantize_activations(half, rules)(with_sites(v, sites), x)
    assert_close(out, half(v, x), 0.1)

    leaf = LowRank(draw(2, 6, 2), quantize(draw(3, 2, 5), Uniform(8)), (6, 5))
    rule = Rule(quantizer=Dynamic(Uniform(8)))
    expected = rounded(np.asarray(draw(4, 3, 6), np.float64), Uniform(8), (0, 1)) @ np.asarray(leaf.unpack(), np.float64)
    for native in (False, True):
        assert_close(quantize_activations(lambda v, x: x @ v, rule, native=native)(leaf, draw(4, 3, 6)), expected)


def test_ragged_dots_are_rounded_as_dots_are() -> None:
    """A mixture of experts: each group of rows is what a dot with its own matrix gives, on the same rounded operands."""
    rng = np.random.default_rng(8)
    w, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 6, 4), (5, 6)))
    sizes = jnp.array([2, 3])
    for rule in (
        Rule(quantizer=Dynamic(Uniform(8)), argument="any"),
        Rule(quantizer=Dynamic(Uniform(4)), free_axes=True),
        Rule(quantizer=Static(Uniform(8))),
    ):
        sites = calibrate_activations(lambda v, x: jax.lax.ragged_dot(x, v["w"], sizes), rule, {"w": w}, [x])
        apply = quantize_activations(lambda v, x: jax.lax.ragged_dot(x, v["w"], sizes), rule)
        got = jax.jit(apply)(with_sites({"w": w}, sites), x)
        quantizer, site = rule.quantizer, sites.get("ragged_dot_general", {}).get("lhs", {})
        rounded = replace(quantizer, axes=(1,))(x, {}) if rule.free_axes else quantizer(x, site)
        matrices = quantizer(w, {}) if rule.argument == "any" else w
        by_hand = jnp.concatenate([rounded[:2] @ matrices[0], rounded[2:] @ matrices[1]])
        np.testing.assert_allclose(got, by_hand, rtol=1e-6, atol=1e-6)
