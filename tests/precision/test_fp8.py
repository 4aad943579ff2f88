"""Eight-bit dots with delayed scaling: scales, histories, gradients, scans, training."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from lepton_jax import identity
from lepton_jax.precision import Amax, Fp8, Policy, StaticScale, autocast, init_amax, next_amax, with_amax
from lepton_jax.training import create, make_train_step

BF16, FP32 = Policy(compute_dtype="bfloat16"), Policy(compute_dtype="float32")


def rounded(x: np.ndarray, amax: float, dtype: object, margin: int = 0) -> np.ndarray:
    """The recipe, in numpy."""
    top = float(ml_dtypes.finfo(dtype).max)
    scale = np.float32(top / 2**margin / np.float32(amax)) if amax > 0 else np.float32(1)
    return np.clip(x * scale, -top, top).astype(dtype).astype(np.float32) / scale


def matmul(variables: dict, x: jax.Array) -> jax.Array:
    return x @ variables["w"]


@pytest.mark.parametrize("seed", range(2))
def test_values_gradients_and_histories_against_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, g = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 8), (8, 4), (6, 4)))
    fp8 = Fp8(history=3, margin=1)
    amax = Amax(jnp.array([1.0, 4.0, 2.0]), jnp.array([3.0, 0.0, 0.0]), jnp.array([0.0, 8.0, 0.5]))
    f = autocast(matmul, FP32, fp8=fp8)
    y, back = jax.vjp(f, {"w": jnp.asarray(w), "amax": {"dot_general": amax}}, jnp.asarray(x))
    e4, e5 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
    qx, qw, qg = rounded(x, 4.0, e4, 1), rounded(w, 3.0, e4, 1), rounded(g, 8.0, e5, 1)
    np.testing.assert_allclose(y, qx @ qw, rtol=1e-5, atol=1e-5)
    grads, dx = back(jnp.asarray(g))
    np.testing.assert_allclose(grads["w"], qx.T @ qg, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, qg @ qw.T, rtol=1e-5, atol=1e-5)
    new = next_amax({"w": w, "amax": {}}, grads)["amax"]["dot_general"]
    np.testing.assert_array_equal(new.lhs, np.array([np.abs(x).max(), 1.0, 4.0], np.float32))
    np.testing.assert_array_equal(new.rhs, np.array([np.abs(w).max(), 3.0, 0.0], np.float32))
    np.testing.assert_array_equal(new.grad, np.array([np.abs(g).max(), 0.0, 8.0], np.float32))


def test_scale_begins_at_one_and_an_overflow_leaves_no_trace() -> None:
    fp8 = Fp8(history=2)
    assert fp8.scale(jnp.zeros(2), fp8.forward).item() == 1.0
    assert fp8.scale(jnp.array([7.0, 14.0]), fp8.forward).item() == 32.0
    assert fp8.pushed(jnp.array([jnp.inf, 1.0]), jnp.array([2.0, 5.0])).tolist() == [2.0, 5.0]
    assert fp8.pushed(jnp.array([jnp.nan, 1.0]), jnp.array([2.0, 5.0])).tolist() == [2.0, 5.0]


def stack(variables: dict, x: jax.Array) -> jax.Array:
    """Dots in a scan and in a remat, and one alone."""
    x, _ = jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, variables["layers"])
    return jax.nn.softmax(x @ variables["head"])


def test_in_scan_and_remat_every_layer_has_its_own_history() -> None:
    rng = np.random.default_rng(4)
    variables = {"layers": jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32), "head": jnp.eye(4)}
    x = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    amax = init_amax(stack, Fp8(history=2), variables, x)
    assert sorted(jax.tree.map(jnp.shape, one) for one in amax.values()) == [((2,),) * 3, ((3, 2),) * 3]
    f = autocast(stack, BF16, fp8=Fp8(history=2))
    grads = jax.jit(jax.grad(lambda v: jnp.sum(f(v, x) ** 2)))({**variables, "amax": amax})
    [scanned] = [one for one in grads["amax"].values() if one.lhs.ndim == 2]
    expected = np.abs(np.asarray(variables["layers"].astype(jnp.bfloat16), np.float32)).max((1, 2))
    np.testing.assert_array_equal(scanned.rhs[:, 0], expected)
    assert bool((scanned.grad[:, 0] > 0).all())


def test_training_with_scaling_masters_and_the_collection_beside() -> None:
    rng = np.random.default_rng(5)
    params = {"w": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)}
    x = rng.normal(size=(64, 8)).astype(np.float32)
    batch = (x, x @ rng.normal(size=(8, 4)).astype(np.float32))
    fp8, settings = Fp8(history=4), StaticScale(scale=1024.0)
    f = autocast(matmul, BF16, fp8=fp8)
    tx = with_amax(optax.adam(0.05))
    start = {**params, "amax": init_amax(matmul, fp8, params, x)}

    def loss_fn(params: dict, model_state: dict, batch: tuple, key: jax.Array) -> tuple:
        return jnp.mean((f(params, batch[0]) - batch[1]) ** 2), (model_state, {})

    state = create(start, {}, tx, identity(), jax.random.key(0), loss_scale=settings)
    step, losses = make_train_step(loss_fn, tx, identity(), loss_scale=settings), []
    for _ in range(100):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.05 * losses[0]
    amax = state.params["amax"]["dot_general"]
    largest = np.abs(np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float32)).max()
    np.testing.assert_allclose(amax.lhs, np.full(4, largest), rtol=1e-6)
    assert bool((amax.grad > 0).all())


def test_misuse() -> None:
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"with the collection 'amax', of init_amax; got w"):
        autocast(matmul, BF16, fp8=Fp8())({"w": x}, x)
    with pytest.raises(TypeError, match=r"forward: must be float8_e4m3fn.*got bfloat16"):
        Fp8(forward="bfloat16")
    with pytest.raises(TypeError, match=r"the backend 'cpu' cannot compute in float4_e2m1fn|of eight bits; got float4_e2m1fn"):
        Fp8(forward="float4_e2m1fn")
    with pytest.raises(ValueError, match="history must be a whole number from 1 up; got 0"):
        Fp8(history=0)
    with pytest.raises(ValueError, match="has no dot or convolution"):
        init_amax(lambda v, x: x + v["w"], Fp8(), {"w": x}, x)
