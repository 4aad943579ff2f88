"""Rematerialisation: gradients of the same operations, bytes counted, budgets kept, any model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.models import ResNet, Transformer
from lepton_jax.precision import Policy, autocast, remat, residual_bytes


def mlp():
    sizes = (20, 32, 16, 8)
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        {"w": jax.random.normal(key, size), "b": jnp.zeros(size[1:])} for key, size in zip(keys, itertools.pairwise(sizes))
    ]

    def apply(params, x):
        for one in params:
            x = jax.nn.relu(x @ one["w"] + one["b"][None])
        return jnp.sum(x**2)

    return apply, params, jax.random.normal(jax.random.key(1), (12, 20))


def decoder(*, scan: bool):
    model = Transformer(vocabulary=64, depth=4, width=32, heads=4, mlp=128, scan=scan)
    x = jax.random.randint(jax.random.key(1), (2, 24), 0, 64)
    params = model.init(jax.random.key(0), x)["params"]
    return (lambda p, x: jnp.mean(jax.nn.logsumexp(model.apply({"params": p}, x), axis=-1))), params, x


def odd():
    """A plain dict, scanned bfloat16 layers, a choice, a loop inside, a rule of its own, sizes of 1 and of nothing."""

    @jax.custom_vjp
    def clipped(x):
        return jnp.clip(x, -1, 1)

    clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (g,))

    def layer(h, w):
        h = h + clipped(jnp.tanh(h @ w["~/linear:0"])).astype(h.dtype) * w["scale"][None]
        h = jax.lax.cond(jnp.sum(h) > 0, jnp.sin, lambda h: (h @ w["~/linear:0"]).astype(h.dtype), h)
        return jax.lax.scan(lambda c, _: (jnp.tanh(c), None), h, None, length=2)[0], jnp.sum(h)

    def apply(params, x, *, times=1.0):
        h, sums = jax.lax.scan(layer, x.astype(jnp.bfloat16), params["net/~/stack"])
        return times * jnp.sum(h.astype(jnp.float32) @ params["b c"]) + jnp.sum(sums.astype(jnp.float32)) + params["one"][0]

    draw = np.random.default_rng(3).normal
    stack = {"~/linear:0": jnp.asarray(draw(size=(3, 5, 5)) / 3, jnp.bfloat16), "scale": jnp.ones((3, 1), jnp.bfloat16)}
    params = {
        "net/~/stack": stack,
        "b c": jnp.asarray(draw(size=(5, 1)), jnp.float32),
        "one": jnp.ones(1),
        "none": jnp.ones((0, 3)),
    }
    return apply, params, jnp.asarray(draw(size=(7, 5)), jnp.float32)


def apart(one, other):
    """How far two trees are apart, of the length of the first; a key's bias, for one, has no gradient but rounding."""
    a, b = (np.concatenate([np.ravel(np.float32(leaf)) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return np.linalg.norm(a - b) / np.linalg.norm(a)


MODELS = {"mlp": mlp, "scanned": lambda: decoder(scan=True), "unrolled": lambda: decoder(scan=False), "odd": odd}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same(name):
    apply, params, x = MODELS[name]()
    again = remat(apply)
    one, other = (jax.jit(jax.value_and_grad(f))(params, x) for f in (apply, again))
    assert jax.tree.map(jax.typeof, one) == jax.tree.map(jax.typeof, other)
    assert apart(one[1], other[1]) <= (0.02 if name == "odd" else 1e-5)
    assert jax.jit(apply)(params, x) == jax.jit(again)(params, x)
    assert residual_bytes(again, params, x) < residual_bytes(apply, params, x)


def test_one_by_one_they_are_the_same_bits():
    apply, params, x = mlp()
    with jax.disable_jit():
        one, other = jax.grad(apply)(params, x), jax.grad(remat(apply))(params, x)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_kept_by_hand():
    """Of 3 layers: the results of 3 products, in one segment or two; relu's signs and the biases' sums are computed again."""
    apply, params, x = mlp()
    assert residual_bytes(remat(apply), params, x) >= 4 * 12 * (32 + 16 + 8)
    f = lambda w, x: jnp.sum(jnp.sin(jnp.exp(x @ w)))  # noqa: E731
    assert residual_bytes(f, jnp.ones((20, 6)), x) == 2 * 4 * 12 * 6  # exp's result, and the cosine of it
    assert residual_bytes(remat(f), jnp.ones((20, 6)), x) == 4 * 12 * 6


@pytest.mark.parametrize("scan", [True, False])
def test_a_budget_is_kept(scan):
    apply, params, x = decoder(scan=scan)
    everything = residual_bytes(remat(apply), params, x)
    with pytest.raises(ValueError, match="a budget of 0 bytes is too small") as caught:
        remat(apply, budget=0)(params, x)
    least = int(str(caught.value).split("small: ")[1].split(" are")[0].replace(",", ""))
    assert 2 * least < everything
    before = 0
    for budget in (least, (least + everything) // 2, everything):
        kept = residual_bytes(remat(apply, budget=budget), params, x)
        assert before < kept <= budget
        before = kept
    assert before == everything
    # Attention's products, of the fewest multiplications a byte, go first.
    some = str(jax.make_jaxpr(remat(apply, budget=everything - 1))(params, x))
    assert 0 < some.count("name=lepton_jax") < str(jax.make_jaxpr(remat(apply))(params, x)).count("name=lepton_jax")


def test_a_compiled_step_of_scanned_layers_holds_less():
    model = Transformer(vocabulary=64, depth=8, width=64, heads=4, mlp=256, scan=True)
    x = jnp.zeros((4, 64), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    apply = lambda p, x: jnp.mean(jax.nn.logsumexp(model.apply({"params": p}, x), axis=-1))  # noqa: E731

    def temporary(f):
        return jax.jit(jax.grad(f)).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    plain, kept = temporary(apply), temporary(remat(apply))
    assert kept < 0.65 * plain


def test_after_autocast_bytes_are_of_its_dtypes():
    apply, params, x = decoder(scan=True)
    half = remat(autocast(apply, Policy(compute_dtype="bfloat16")))
    assert residual_bytes(half, params, x) < 0.65 * residual_bytes(remat(apply), params, x)
    plain = autocast(apply, Policy(compute_dtype="bfloat16"))
    assert apart(*(jax.jit(jax.grad(f))(params, x) for f in (plain, half))) <= 0.02


def test_updated_state_and_a_key_go_through():
    """Batch statistics come out; dropout draws the same numbers both times."""
    model = ResNet(classes=3, blocks=(1, 1), features=4, stem="small")
    x = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
    variables = model.init(jax.random.key(0), x, train=False)

    def apply(variables, x, key):
        logits, state = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits * jax.random.bernoulli(key, 0.5, logits.shape), state

    loss = lambda f: lambda v, x, k: jnp.sum(f(v, x, k)[0] ** 2)  # noqa: E731
    key = jax.random.key(5)
    for one, other in (
        (jax.jit(apply), jax.jit(remat(apply))),
        (jax.jit(jax.grad(loss(apply))), jax.jit(jax.grad(loss(remat(apply))))),
    ):
        for a, b in zip(*(jax.tree.leaves(f(variables, x, key)) for f in (one, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bad_budgets():
    with pytest.raises(ValueError, match="budget"):
        remat(lambda p, x: p, budget=-1)
