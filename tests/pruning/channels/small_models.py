"""A small convolutional network and a network of two layers, whose plans can be computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.Conv(4, (3, 3), name="last")(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), jnp.float32)


def mlp(v, x):
    return jax.nn.relu(x @ v["a"]) @ v["b"]


MLP = {"a": jnp.array([[1.0, -2.0, 3.0, 0.5], [1.0, 0.0, -1.0, 0.5]]), "b": jnp.array([[1.0], [-4.0], [0.5], [0.25]])}
POINT = jnp.ones((1, 2))


def removed(made):
    return {g.name: g.removed for g in made.groups}
