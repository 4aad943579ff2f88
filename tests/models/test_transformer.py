"""The decoder against NumPy in float64; it sees no later token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.models import Transformer, attend, rotate

SIZES = {"vocabulary": 7, "depth": 1, "width": 8, "heads": 2, "mlp": 12, "max_length": 6}


def init(model: Transformer, tokens: np.ndarray, seed: int = 0):
    rng = np.random.default_rng(seed)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), variables)


def norm(x: np.ndarray, p: dict) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turn(x: np.ndarray) -> np.ndarray:
    """Rotate one head [L, d] through complex numbers."""
    half = x.shape[-1] // 2
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.outer(np.arange(len(x)), 10_000.0 ** (-np.arange(half) / half)))
    return np.concatenate([z.real, z.imag], axis=-1)


def reference(params: dict, tokens: np.ndarray, rotary: bool, tied: bool) -> np.ndarray:
    """Compute the logits of one sequence, head by head and position by position."""
    x = params["Embed_0"]["embedding"][tokens]
    if not rotary:
        x = x + params["Embed_1"]["embedding"][: len(tokens)]
    block = params["Block_0"]
    y = norm(x, block["LayerNorm_0"])
    q, k, v = (y @ block[name]["kernel"] + block[name]["bias"] for name in ("query", "key", "value"))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        qh, kh, vh = (turn(q[:, part]), turn(k[:, part]), v[:, part]) if rotary else (q[:, part], k[:, part], v[:, part])
        rows = []
        for i in range(len(tokens)):
            weights = np.exp(qh[i] @ kh[: i + 1].T / 2.0)
            rows.append(weights @ vh[: i + 1] / weights.sum())
        heads.append(np.stack(rows))
    x = x + np.concatenate(heads, axis=-1) @ block["out"]["kernel"] + block["out"]["bias"]
    y = gelu(norm(x, block["LayerNorm_1"]) @ block["up"]["kernel"] + block["up"]["bias"])
    x = norm(x + y @ block["down"]["kernel"] + block["down"]["bias"], params["LayerNorm_0"])
    return x @ (params["Embed_0"]["embedding"].T if tied else params["Dense_0"]["kernel"])


@pytest.mark.parametrize(("position", "tied"), [("learned", False), ("rotary", True)])
def test_logits_are_the_reference_and_causal(position: str, tied: bool):
    model = Transformer(**SIZES, position=position, tied=tied)
    tokens = np.random.default_rng(1).integers(0, 7, (3, 6)).astype(np.int32)
    variables = init(model, tokens)
    apply = jax.jit(model.apply)
    got = np.asarray(apply(variables, tokens))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])
    expected = np.stack([reference(params, row, position == "rotary", tied) for row in tokens])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    changed = tokens.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 7
    after = np.asarray(apply(variables, changed))
    np.testing.assert_array_equal(after[:, :4], got[:, :4])
    assert (np.abs(after[:, 4:] - got[:, 4:]).max(axis=(0, 2)) > 1e-3).all()


def test_attention_ignores_what_comes_later_even_when_it_is_not_finite():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 4, 2, 4)).astype(np.float32) for _ in range(3))
    before = jax.jit(attend)(q, k, v)
    k[:, 3] = np.inf
    np.testing.assert_array_equal(jax.jit(attend)(q, k, v)[:, :3], before[:, :3])
    half = jax.jit(attend)(*(jnp.asarray(a, jnp.bfloat16) for a in (q, np.nan_to_num(k, posinf=1.0), v)))
    assert half.dtype == jnp.bfloat16


def test_rotated_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 6)).astype(np.float32)
    rows = [np.asarray(jax.jit(rotate)(np.broadcast_to(vector, (1, 9, 1, 6))))[0, :, 0] for vector in (q, k)]
    products = rows[0] @ rows[1].T
    for distance in (0, 1, 3):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4, atol=1e-5)
    assert abs(products[0, 0] - products[0, 3]) > 1e-2
    assert jax.eval_shape(rotate, jnp.ones((1, 2, 1, 4), jnp.bfloat16)).dtype == jnp.bfloat16
