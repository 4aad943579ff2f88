"""Learned steps and offsets: the papers' gradients, by hand and in float64; as a view of weights, and of activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lepton_jax import cast, chain, freeze, low_rank, pack, prune, unpack
from lepton_jax.core import paths, schedules
from lepton_jax.quantization import (
    Codebook,
    LearnedStep,
    Mse,
    Rule,
    TwiceMean,
    Uniform,
    calibrate_activations,
    expand,
    fake_quant,
    learned_round,
    lsq,
    quantize_activations,
    with_sites,
)
from lepton_jax.quantization.codebook import Centroids

FORMATS = [
    Uniform(2),
    Uniform(4, channel_axis=-1),
    Uniform(3, group_size=4),
    Uniform(3, symmetric=False),
    Uniform(4, symmetric=False, channel_axis=0, signed=True),
    Uniform(3, signed=False),
]


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_hand(x: np.ndarray, step: np.ndarray, offset: np.ndarray, fmt: Uniform, slope: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values, and the gradients of sum(slope * values), element by element as the papers write them; float64."""
    (low, high), out = fmt.q_range, {name: np.zeros(x.shape) for name in ("y", "dx", "ds", "db")}
    for place in np.ndindex(x.shape):
        s, zero = step[place], 0.0
        if not fmt.symmetric:
            zero = min(max(np.round(-offset[place] / s), low), high)
        t = x[place] / s + zero
        if t <= low:
            out["y"][place], out["ds"][place], out["db"][place] = (low - zero) * s, low, 1
        elif t >= high:
            out["y"][place], out["ds"][place], out["db"][place] = (high - zero) * s, high, 1
        else:
            out["y"][place], out["dx"][place], out["ds"][place] = (np.round(t) - zero) * s, 1, np.round(t) - t
    return out["y"], slope * out["dx"], slope * out["ds"], slope * out["db"] * (not fmt.symmetric)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.channel_axis}-{fmt.group_size}")
def test_values_and_gradients_are_the_papers(fmt):
    x, slope = draw(0, 6, 5), draw(1, 6, 5)
    shape = fmt.scale_shape(x.shape)
    step, offset = jnp.abs(draw(2, *shape)) * 0.3 + 0.2, draw(3, *shape) - 0.5

    def total(x, step, offset):
        return jnp.sum(slope * learned_round(x, step, offset, fmt))

    wide = [np.broadcast_to(np.asarray(expand(a, x.shape, fmt), np.float64), x.shape) for a in (step, offset)]
    y, dx, ds, db = by_hand(np.asarray(x, np.float64), *wide, fmt, np.asarray(slope, np.float64))
    np.testing.assert_allclose(learned_round(x, step, offset, fmt), y, rtol=1e-5, atol=1e-6)
    got = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(x, step, offset)
    np.testing.assert_allclose(got[0], dx, rtol=1e-5)
    for mine, elements in zip(got[1:], (ds, db)):
        _, back = jax.vjp(lambda a: jnp.broadcast_to(expand(a, x.shape, fmt), x.shape), step)
        [summed] = back(jnp.asarray(elements, jnp.float32))
        np.testing.assert_allclose(mine, summed, rtol=2e-4, atol=2e-5)


def test_four_elements_and_both_ends():
    x, step, none = jnp.array([0.3, 1.0, -1.0, -2.0, 5.0]), jnp.ones(1), jnp.zeros(1)
    slopes = jax.jacobian(lambda x, s: learned_round(x, s, none, Uniform(2)), argnums=(0, 1))(x, step)
    assert jnp.diag(slopes[0]).tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]  # at an end, -2 or 1, as beyond it
    np.testing.assert_allclose(slopes[1][:, 0], [-0.3, 1.0, 0.0, -2.0, 1.0], rtol=1e-6)
    narrow = Uniform(2, narrow_range=True)
    slopes = jax.jacobian(lambda x, s: learned_round(x, s, none, narrow), argnums=(0, 1))(x, step)
    assert jnp.diag(slopes[0]).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(slopes[1][:, 0], [-0.3, 1.0, -1.0, -1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-45])
def test_a_step_that_is_not_positive_gives_finite_values_and_gradients(bad):
    x = jnp.array([0.0, 1.0, -2.0, jnp.nan])
    for fmt in (Uniform(4), Uniform(4, symmetric=False)):
        value, back = jax.vjp(lambda s, x=x, fmt=fmt: learned_round(x, s, jnp.array([-0.5]), fmt), jnp.array([bad]))
        assert np.isfinite(value).all()
        assert np.isfinite(back(jnp.ones(4))[0]).all()
        assert value[0] == 0


def test_gradients_of_steps_are_scaled():
    w, slope = draw(4, 8, 6), draw(5, 8, 6)
    for fmt, shared in ((Uniform(3), 48), (Uniform(3, channel_axis=-1), 8), (Uniform(3, symmetric=False), 48)):
        transform = lsq(fmt)
        params, state = transform.init({"k": w})
        node = jax.grad(lambda p, t=transform, s=state: jnp.sum(slope * t.view(p, s)["k"]))(params)["k"]
        first, shape = params["k"], fmt.scale_shape(w.shape)
        offset = jnp.zeros(shape) if fmt.symmetric else first.offset.reshape(shape)
        raw = jax.grad(lambda s, o, f=fmt: jnp.sum(slope * learned_round(w, s, o, f)), (0, 1))(
            first.step.reshape(shape), offset
        )
        factor = 1 / np.sqrt(shared * fmt.q_range[1])
        np.testing.assert_allclose(node.step, factor * raw[0].reshape(-1), rtol=1e-5)
        if not fmt.symmetric:
            np.testing.assert_allclose(node.offset, factor * raw[1].reshape(-1), rtol=1e-5)

    x, quantizer = draw(6, 7, 3, 4), LearnedStep(Uniform(3))  # seven examples of twelve features
    site = {"step": jnp.full((1, 1, 1), 0.3)}
    mine = jax.grad(lambda site: jnp.sum(quantizer(x, site)))(site)["step"]
    raw = jax.grad(lambda s: jnp.sum(learned_round(x, s, s, Uniform(3))))(site["step"])
    np.testing.assert_allclose(mine, raw / np.sqrt(12 * 3), rtol=1e-5)


def test_the_first_step_is_the_papers():
    w = np.where(np.random.default_rng(0).random((9, 4)) < 0.5, 0, np.random.default_rng(1).normal(size=(9, 4)))
    params, _ = lsq(Uniform(4)).init({"k": jnp.asarray(w, jnp.float32)})
    np.testing.assert_allclose(params["k"].step, [2 * np.abs(w[w != 0]).mean() / np.sqrt(7)], rtol=1e-5)
    # Over batches, as at once.
    fmt, x = Uniform(4, signed=False), jnp.asarray(w, jnp.float32)
    state = TwiceMean().init((1, 1))
    for part in (x[:4], x[4:]):
        state = TwiceMean().observe(state, part, (0, 1))
    np.testing.assert_allclose(TwiceMean().range(state, fmt), TwiceMean()(x, (0, 1), fmt), rtol=1e-6)
    with pytest.raises(TypeError, match="TwiceMean: takes a symmetric uniform format"):
        TwiceMean()(x, (0, 1), Uniform(4, symmetric=False))
    zeros, state = lsq(Uniform(3, channel_axis=-1)).init({"k": jnp.zeros((3, 2))})
    assert lsq(Uniform(3, channel_axis=-1)).view(zeros, state)["k"].tolist() == [[0.0, 0.0]] * 3


def test_training_brings_a_bad_step_near_the_best():
    w = draw(7, 20, 20)
    transform = lsq(2)
    params, state = transform.init({"k": w})
    params = {"k": params["k"].__class__(w, params["k"].step * 0.1, ())}

    @jax.jit
    def error(params):
        return jnp.mean((transform.view(params, state)["k"] - w) ** 2)

    begun = error(params)
    slope = jax.jit(jax.grad(error))
    for _ in range(80):
        params = {"k": params["k"].__class__(w, params["k"].step - 2 * slope(params)["k"].step, ())}
    steps = np.linspace(0.1, 3, 300)
    best = min(float(np.mean((np.clip(np.round(w / s), -2, 1) * s - w) ** 2)) for s in steps)
    assert best <= error(params) * 1.001 < 1.5 * best < begun


@pytest.mark.parametrize("fmt", [Uniform(2), Uniform(3, symmetric=False, channel_axis=-1), Uniform(4, group_size=8)], ids=str)
def test_what_is_packed_is_what_was_seen(fmt):
    params = {"k": draw(8, 20, 6), "b": jnp.ones(6)}
    for transform in (lsq(fmt), chain(lsq(fmt), prune(0.5)), chain(prune(0.5), lsq(fmt), cast("bfloat16"))):
        masters, state = transform.init(params)
        masters = jax.tree.map(lambda leaf: leaf * 0.93 + 0.004, masters)  # steps and offsets are anywhere
        seen = jax.jit(transform.view)(masters, state)
        leaf = unpack(pack(transform, masters, state))["k"]
        assert leaf.dtype == seen["k"].dtype
        assert np.asarray(leaf).tobytes() == np.asarray(seen["k"]).tobytes()


def test_pruned_weights_stay_zero_under_a_schedule_that_goes_on():
    transform = chain(prune(schedules.polynomial(0.8, begin=0, end=4)), lsq(Uniform(3, symmetric=False)))
    params, state = transform.init({"k": draw(9, 10, 10)})
    for step in range(6):
        slopes = jax.grad(lambda p, s: jnp.sum(transform.view(p, s)["k"] ** 2))(params, state)
        params = jax.tree.map(lambda leaf, slope: leaf - 0.01 * slope + 0.001, params, slopes)
        params, state = transform.update(params, state, slopes, step)
    mask = state[0].masks["k"]
    assert int(mask.sum()) == 20
    for t, s in ((transform, state), (chain(freeze(transform, state)), (state,))):
        seen = np.asarray(t.view(params, s)["k"])
        assert not seen[~np.asarray(mask)].any()
        assert (params["k"].value[~mask] == 0).all()


def test_both_factors_of_a_low_rank_weight():
    transform = chain(low_rank(2), lsq(4))
    params, state = transform.init({"k": draw(10, 8, 6)})
    assert list(paths.flatten(params)) == ["k/u", "k/u/step", "k/v", "k/v/step"]
    slopes = jax.grad(lambda p: jnp.sum(transform.view(p, state)["k"] ** 2))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slopes))
    leaf = pack(transform, params, state)["k"]
    assert (leaf.u.format, leaf.v.format) == (Uniform(4, channel_axis=-1), Uniform(4, channel_axis=-1))


@pytest.mark.parametrize("later", [lsq(4), low_rank(2), fake_quant(Codebook(bits=2))], ids=["lsq", "low_rank", "codebook"])
def test_a_weight_is_re_parametrised_once(later):
    with pytest.raises(ValueError, match=r"re-parametrise what an earlier one already did(.|\n)*k: "):
        chain(lsq(4), later).init({"k": draw(11, 6, 5)})
    transform = lsq(4)
    params, state = transform.init({"k": draw(11, 6, 5)})
    taken = {"k": params["k"].__class__(Centroids(jnp.ones(2), "float32"), params["k"].step, ())}
    with pytest.raises(ValueError, match="lsq: k must be the weight and step that its init put there"):
        transform.view(taken, state)


def test_misuse():
    with pytest.raises(TypeError, match="lsq: format must be a Uniform"):
        lsq(Codebook(bits=2))
    with pytest.raises(TypeError, match="LearnedStep: format must be a Uniform"):
        LearnedStep("int8")
    with pytest.raises(ValueError, match=r"first steps(.|\n)*a: .*channel_axis=2 is out of range(.|\n)*b: "):
        lsq(Uniform(4, channel_axis=2)).init({"a": draw(0, 2, 2), "b": draw(0, 2, 2)})
    with pytest.raises(ValueError, match="matches no floating leaf"):
        lsq(4, select="nothing").init({"a": draw(0, 2, 2)})


# ------------------------------------------------------------------------------------------------------------ in networks


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(nn.relu(nn.Dense(4, name="a")(x)))


def plain(v, x):
    hidden = jax.nn.relu(x @ v["a"]["kernel"] + v["a"]["bias"][None])
    return hidden @ v["b"]["kernel"] + v["b"]["bias"][None]


def test_linen_nnx_and_plain_are_one():
    x, linen = draw(12, 5, 6), Net()
    params = jax.jit(linen.init)(jax.random.key(0), x)["params"]

    class Nnx(nnx.Module):
        def __init__(self):
            self.a, self.b = nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.b(jax.nn.relu(self.a(x)))

    graph, state = nnx.split(Nnx())
    state = nnx.State({n: {k: state[n][k].replace(params[n][k]) for k in ("kernel", "bias")} for n in "ab"})
    models = [
        (params, lambda p, x: linen.apply({"params": p}, x)),
        (params, plain),
        (state, lambda s, x: nnx.merge(graph, s)(x)),
    ]
    results = []
    for tree, apply in models:
        transform, rule = lsq(Uniform(3, channel_axis=-1)), Rule(quantizer=LearnedStep(Uniform(3, symmetric=False), Mse()))

        def model(variables, x, apply=apply):
            return apply(variables["params"], x)

        masters, tstate = transform.init(tree)
        sites = calibrate_activations(model, rule, {"params": tree}, [x])

        def loss(masters, sites, transform=transform, tstate=tstate, model=model, rule=rule):
            variables = with_sites({"params": transform.view(masters, tstate)}, sites)
            return jnp.sum(quantize_activations(model, rule)(variables, x) ** 2)

        value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(masters, sites)
        leaves = paths.flatten(slopes[0]), jax.tree.leaves(slopes[1])
        results.append((value, leaves[0]["a/kernel/step"], leaves[0]["a/kernel"], *leaves[1]))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert all(np.any(leaf) for leaf in results[0])


def test_in_a_scan_every_step_has_its_own():
    layers, x = {"w": draw(13, 3, 5, 5)}, draw(14, 2, 5)

    def model(v, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), ()), x, v["w"])[0]

    transform, rule = lsq(Uniform(3, channel_axis=0)), Rule(quantizer=LearnedStep(Uniform(3), TwiceMean()))
    masters, tstate = transform.init(layers)
    sites = calibrate_activations(model, rule, layers, [x])
    assert [leaf.shape[0] for leaf in jax.tree.leaves(sites)] == [3]

    def loss(masters, sites):
        return jnp.sum(quantize_activations(model, rule)(with_sites(transform.view(masters, tstate), sites), x) ** 2)

    def by_layer(masters, sites):
        out, [step] = x, jax.tree.leaves(sites)
        seen = transform.view(masters, tstate)["w"]
        for w, own in zip(seen, step):
            out = jnp.tanh(LearnedStep(Uniform(3))(out, {"step": own}) @ w)
        return jnp.sum(out**2)

    looped, unrolled = (jax.jit(jax.value_and_grad(f, (0, 1)))(masters, sites) for f in (loss, by_layer))
    for mine, theirs in zip(jax.tree.leaves(looped), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(looped[1][1]))


def test_under_vmap_members_are_apart():
    transform, weights = lsq(Uniform(3, symmetric=False)), draw(15, 4, 6, 5)

    def run(w):
        params, state = transform.init({"k": w})
        return jax.grad(lambda p: jnp.sum(transform.view(p, state)["k"] ** 2))(params)["k"]

    together = jax.jit(jax.vmap(run))(weights)
    for number, w in enumerate(weights):
        for mine, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(run(w))):
            np.testing.assert_allclose(mine[number], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fmt", [Uniform(4), Uniform(3, symmetric=False), Uniform(2, signed=False)], ids=str)
def test_codes_are_what_is_shown(fmt):
    quantizer = LearnedStep(fmt)
    x = draw(16, 3, 50)
    site = jax.tree.map(lambda a: a * 0.7 + 0.01, quantizer.init(jnp.full((1, 1), -1.0), jnp.full((1, 1), 2.0)))
    seen, codes = quantizer(x, site), quantizer.quantized(x, site)
    zero = codes.zero_point if len(codes.zero_point) else 0
    assert np.asarray((codes.qvalue.astype(jnp.int32) - zero) * codes.scale).tobytes() == np.asarray(seen).tobytes()
    assert (quantizer(jnp.zeros((2, 2)), site) == 0).all()
