"""Adapters: what moves, what does not, and what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from lepton_jax import Transform, chain, fake_quant, pack, unpack
from lepton_jax.core import paths
from lepton_jax.core.packed import is_packed
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.lowrank import Held, dora, loftq, lora, merge, qlora
from lepton_jax.quantization import NormalFloat4, QArray, Uniform, dequantize, quantize
from lepton_jax.training import Checkpoints, create, make_train_step

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": jnp.asarray(RNG.normal(size=(3, 3, 2, 5)), jnp.float32),
    "head": {"kernel": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32), "bias": jnp.asarray(RNG.normal(size=4), jnp.float32)},
}
INT4 = Uniform(bits=4, channel_axis=-1)
KEY = jax.random.key(3)
ALL = {
    "lora": lora(2, KEY, scale=2.0, train="*/bias"),
    "qlora": qlora(2, KEY, format=INT4, scale=0.5),
    "loftq": qlora(2, KEY, format=INT4, scale=0.5, rounds=3),
    "dora": dora(2, KEY, scale=2.0, train="*/bias"),
}


def loss(params: dict) -> jax.Array:
    return jnp.sum(jnp.sin(params["conv"]) ** 2) + jnp.sum(
        (jnp.tanh(params["head"]["kernel"]) + params["head"]["bias"][None]) ** 2
    )


def bits(tree: object) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def train(transform: Transform, tx: optax.GradientTransformation, params: dict, steps: int) -> tuple:
    def loss_fn(seen, model_state, batch, key):
        return loss(seen), (model_state, {})

    step = make_train_step(loss_fn, tx, transform)
    state = create(params, {}, tx, transform, jax.random.key(0))
    for _ in range(steps):
        state, metrics = step(state, jnp.zeros(1))
    assert step._cache_size() == 1
    return state, metrics


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tx", [optax.adamw(0.05, weight_decay=0.3), optax.sgd(0.02, momentum=0.9)], ids=["adamw", "momentum"])
def test_the_base_does_not_move_and_the_loss_falls(name: str, tx: optax.GradientTransformation) -> None:
    transform = ALL[name]
    begun = create(PARAMS, {}, tx, transform, jax.random.key(0))
    params, before = begun.params, bits(begun.tstate)
    first = float(loss(transform.view(params, begun.tstate)))
    state, metrics = train(transform, tx, PARAMS, 30)
    assert bits(state.tstate) == before
    assert float(metrics["loss"]) < first
    # Gradients and moments are of what is trained, and of nothing else.
    trained = set(paths.flatten(params))
    assert all("/u" in p or "/v" in p or "/magnitude" in p or p == "head/bias" for p in trained)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim)
    assert moments == size * (2 if len(jax.tree.leaves(tx.init(params))) > len(trained) + 1 else 1)
    merged = merge(transform, state.params, state.tstate)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert bits(merged) == bits(transform.view(state.params, state.tstate))
    assert bits(merged) == bits(unpack(pack(transform, state.params, state.tstate)))
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(state.params))


def test_what_the_views_are() -> None:
    """Against numpy in float64."""
    shift = {p: np.random.default_rng(i) for i, p in enumerate(("conv", "head/kernel"))}
    for name, transform in ALL.items():
        params, state = transform.init(PARAMS)
        moved = jax.tree.map(
            lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params
        )
        seen = paths.flatten(transform.view(moved, state))
        leaves, dense = paths.flatten(moved, is_packed), paths.flatten(PARAMS)
        for path in shift:
            leaf, base = leaves[path], np.asarray(unpack(state.base[path]), np.float64)
            scale = 2.0 if name in ("lora", "dora") else 0.5
            expected = base + scale * (np.asarray(leaf.u, np.float64) @ np.asarray(leaf.v, np.float64)).reshape(base.shape)
            if name == "dora":
                norm = np.linalg.norm(expected.reshape(-1, base.shape[-1]), axis=0)
                expected = expected / norm * np.asarray(leaf.magnitude, np.float64)[0]
            np.testing.assert_allclose(seen[path], expected, rtol=1e-5, atol=1e-6)
            if name in ("lora", "dora"):
                np.testing.assert_array_equal(base, dense[path])
        bias = moved["head"]["bias"] if name in ("lora", "dora") else PARAMS["head"]["bias"]
        np.testing.assert_array_equal(seen["head/bias"], bias)


def test_they_begin_at_the_model_itself() -> None:
    for name in ("lora", "dora"):
        seen = ALL[name].view(*ALL[name].init(PARAMS))
        for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(PARAMS), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6 if name == "dora" else 0)
    quantized = ALL["qlora"].view(*ALL["qlora"].init(PARAMS))
    np.testing.assert_array_equal(quantized["conv"], dequantize(quantize(PARAMS["conv"], INT4)))


def test_gradients_are_those_of_the_dense_product() -> None:
    transform = ALL["lora"]
    params, state = transform.init(PARAMS)
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)
    grads = jax.grad(lambda p: loss(transform.view(p, state)))(params)
    dense = jax.grad(loss)(transform.view(params, state))
    slope = np.asarray(dense["conv"], np.float64).reshape(-1, 5)
    np.testing.assert_allclose(grads["conv"].u, 2 * slope @ np.asarray(params["conv"].v).T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["conv"].v, 2 * np.asarray(params["conv"].u).T @ slope, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["head"]["bias"], dense["head"]["bias"], rtol=1e-6)


def test_dora_gradients_with_and_without_a_constant_norm() -> None:
    weight = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    slope = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    found = {}
    for constant in (True, False):
        transform = dora(2, KEY, constant_norm=constant)
        params, state = transform.init({"w": weight})
        params["w"] = jax.tree.map(lambda leaf: leaf + 0.2, params["w"])

        def by_hand(leaf, constant=constant):
            moved = weight + leaf.u @ leaf.v
            norm = jnp.sqrt(jnp.sum(moved**2, axis=0, keepdims=True))
            norm = jax.lax.stop_gradient(norm) if constant else norm
            return jnp.sum(slope * leaf.magnitude * moved / norm)

        grads = jax.grad(lambda p, t=transform, s=state: jnp.sum(slope * t.view(p, s)["w"]))(params)["w"]
        expected = jax.grad(by_hand)(params["w"])
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        found[constant] = np.asarray(grads.u)
    assert np.abs(found[True] - found[False]).max() > 1e-3
    zero = dora(1, KEY)
    assert jnp.all(jnp.isfinite(zero.view(*zero.init({"w": weight.at[:, 1].set(0)}))["w"]))


def test_packed_forms() -> None:
    transform = ALL["qlora"]
    leaf = pack(transform, *transform.init(PARAMS))["conv"]
    assert isinstance(leaf, Adapted)
    assert isinstance(leaf.base, QArray)
    assert (leaf.rank, leaf.shape, leaf.dtype) == (2, (3, 3, 2, 5), jnp.float32)
    params, _ = transform.init(PARAMS)
    assert isinstance(params["head"]["bias"], Held)
    assert params["head"]["bias"].shape == (4,)
    with pytest.raises(TypeError, match=r"transform.view\(params, state\)"):
        unpack(params)
    assert isinstance(params["conv"], LowRank)


@pytest.mark.parametrize("first", ["quantized", "low_rank"])
def test_loftq_makes_up_for_the_rounding(first: str) -> None:
    for seed in range(3):
        weight = jnp.asarray(np.random.default_rng(seed).normal(size=(24, 16)), jnp.float32)
        fmt = Uniform(bits=2, channel_axis=-1)
        alone = float(jnp.sum((dequantize(quantize(weight, fmt)) - weight) ** 2))
        errors = []
        for rounds in (1, 5):
            leaf = loftq(weight, 4, fmt, rounds=rounds, first=first)
            residual = np.asarray(weight - leaf.base.unpack(), np.float64)
            tail = np.sum(np.linalg.svd(residual, compute_uv=False)[4:] ** 2)
            errors.append(float(jnp.sum((leaf.unpack() - weight) ** 2)))
            np.testing.assert_allclose(errors[-1], tail, rtol=1e-4)  # the correction is the best there is for this Q
        assert max(errors) < alone
    exact = loftq(weight, 16, Uniform(bits=2))
    np.testing.assert_allclose(exact.unpack(), weight, atol=1e-5)


@pytest.mark.parametrize("fmt", [NormalFloat4(group_size=16), Uniform(bits=4, group_size=8)], ids=["nf4", "grouped"])
def test_other_formats_of_the_base(fmt: object) -> None:
    params = {"w": jnp.asarray(RNG.normal(size=(32, 8)), jnp.float32)}
    errors = []
    for rounds in (0, 2):
        transform = qlora(2, KEY, format=fmt, rounds=rounds)
        masters, state = jax.jit(transform.init)(params)
        seen = transform.view(masters, state)
        assert bits(unpack(pack(transform, masters, state))) == bits(seen) == bits(jax.jit(transform.view)(masters, state))
        errors.append(float(jnp.sum((seen["w"] - params["w"]) ** 2)))
    alone = dequantize(quantize(params["w"], fmt))
    np.testing.assert_allclose(errors[0], jnp.sum((alone - params["w"]) ** 2), rtol=1e-5)
    assert errors[1] < errors[0]


def test_the_first_view_of_qlora_with_rounds_is_loftq() -> None:
    transform = ALL["loftq"]
    seen = transform.view(*transform.init(PARAMS))
    np.testing.assert_allclose(seen["conv"], loftq(PARAMS["conv"], 2, INT4, rounds=3).unpack(), rtol=1e-6, atol=1e-6)


def test_checkpoint_and_resume(tmp_path) -> None:
    transform, tx = ALL["qlora"], optax.adamw(0.01)

    def loss_fn(seen, model_state, batch, key):
        return loss(seen), (model_state, {})

    step = make_train_step(loss_fn, tx, transform)
    state = create(PARAMS, {}, tx, transform, jax.random.key(0))
    for _ in range(3):
        state, _ = step(state, jnp.zeros(1))
    with Checkpoints(tmp_path / "run") as kept:
        kept.save(3, state)
        back, _ = kept.restore(create(PARAMS, {}, tx, transform, jax.random.key(1)))
    assert bits(back._replace(key=())) == bits(state._replace(key=()))
    on, _ = step(state, jnp.zeros(1))
    again, _ = step(back, jnp.zeros(1))
    assert bits(on._replace(key=())) == bits(again._replace(key=()))


def test_linen_nnx_bfloat16_vmap_and_a_chain() -> None:
    linen = nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    network = nnx.split(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param)[1]
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), linen)
    transform = lora(2, KEY)
    for params in (linen, network, narrow):
        masters, state = transform.init(params)
        seen = transform.view(masters, state)
        assert jax.tree.structure(seen) == jax.tree.structure(params)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(seen)] == [(x.shape, x.dtype) for x in jax.tree.leaves(params)]
        assert bits(jax.jit(transform.view)(masters, state)) == bits(seen)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), linen)
    both = jax.vmap(lambda p: transform.view(*transform.init(p)))(stack)
    np.testing.assert_allclose(both["kernel"], stack["kernel"])
    each = lora(2, KEY, stacked=1, select="kernel")
    masters, state = each.init(stack)
    assert masters["kernel"].u.shape == (2, 6, 2)
    assert each.view(masters, state)["kernel"].shape == (2, 6, 4)
    rounded = chain(transform, fake_quant(Uniform(bits=4)))
    seen = rounded.view(*rounded.init(linen))
    np.testing.assert_array_equal(seen["kernel"], dequantize(quantize(linen["kernel"], Uniform(bits=4))))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"rank 6:\n  conv: shape .*1 to 5\n  head/kernel: .* 1 to 4"):
        lora(6, KEY).init(PARAMS)
    with pytest.raises(ValueError, match=r"head/bias: shape .* axes"):
        lora(1, KEY, select="*bias").init(PARAMS)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        lora(1, KEY, train="nothing").init(PARAMS)
    with pytest.raises(ValueError, match="scale must be above 0"):
        dora(1, KEY, scale=0.0)
    with pytest.raises(ValueError, match="rank must be a whole number"):
        qlora(0, KEY)
    with pytest.raises(ValueError, match="rounds must be a whole number"):
        qlora(1, KEY, rounds=-1)
    with pytest.raises(TypeError, match="typed key"):
        lora(1, jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="rank must be a whole number from 1 to 5"):
        loftq(PARAMS["conv"], 6, INT4)
    with pytest.raises(ValueError, match="first must be"):
        loftq(PARAMS["conv"], 1, INT4, first="both")
