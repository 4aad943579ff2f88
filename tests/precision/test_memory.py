"""What is saved between forward and backward: at least 40 % less in bfloat16, on the models of the requirement."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax.models import ResNetCifar, Transformer
from lepton_jax.precision import Policy, autocast
from lepton_jax.training import cross_entropy, linen_apply


def saved(apply: object, variables: dict, x: jax.Array, y: jax.Array) -> list[jax.ShapeDtypeStruct]:
    """The leaves of the backward pass: whatever the forward pass hands it, parameters included."""

    def forward(variables: dict, x: jax.Array) -> list[jax.Array]:
        def loss(params: dict) -> jax.Array:
            state = {name: value for name, value in variables.items() if name != "params"}
            return jnp.mean(cross_entropy(apply(params, state, x, train=True, key=None)[0], y))

        return jax.tree.leaves(jax.vjp(loss, variables["params"])[1])

    return jax.eval_shape(forward, variables, x)


def size(leaves: list[jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def test_the_measure_on_a_hand_case() -> None:
    """Of ``sum(exp(x @ w))`` one saves x (for w) and the exponential; x is no parameter, but what w's derivative needs."""
    x, w = jnp.ones((8, 4)), {"params": {"w": jnp.ones((4, 2))}}

    def apply(params: dict, state: dict, x: jax.Array, *, train: bool, key: None) -> tuple[jax.Array, dict]:
        return jnp.exp(x @ params["w"]), state

    def loss(params: dict) -> jax.Array:
        return jnp.sum(apply(params, {}, x, train=True, key=None)[0])

    leaves = jax.eval_shape(lambda p: jax.tree.leaves(jax.vjp(loss, p)[1]), w["params"])
    assert sorted((leaf.shape, leaf.dtype.name) for leaf in leaves) == [((8, 2), "float32"), ((8, 4), "float32")]


@pytest.mark.parametrize(
    ("model", "shape", "dtype"),
    [(ResNetCifar(), (128, 32, 32, 3), np.float32), (Transformer(vocabulary=65), (8, 128), np.int32)],
    ids=["ResNet-20", "transformer"],
)
def test_bfloat16_saves_at_least_40_percent(model: nn.Module, shape: tuple[int, ...], dtype: type) -> None:
    x = jax.ShapeDtypeStruct(shape, dtype)
    y = jnp.zeros(shape if dtype is np.int32 else shape[:1], jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    plain = linen_apply(model)
    whole = size(saved(plain, variables, x, y))
    leaves = saved(autocast(plain, Policy(compute_dtype="bfloat16")), variables, x, y)
    assert size(leaves) <= 0.6 * whole
    # Without computing anything again some is saved too: narrow operands of dots.
    assert size(saved(autocast(plain, Policy(compute_dtype="bfloat16"), recompute=False), variables, x, y)) < 0.9 * whole
