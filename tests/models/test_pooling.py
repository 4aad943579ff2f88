"""Pooling against Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax.models.pooling import max_pool


@pytest.mark.parametrize(("shape", "size"), [((2, 4, 6, 3), 2), ((1, 7, 5, 1), 2), ((2, 9, 9, 2), 3)])
def test_equals_flax_and_so_does_the_gradient_where_maxima_are_single(shape, size):
    x = jax.random.normal(jax.random.key(sum(shape)), shape)
    ours, theirs = (
        jax.value_and_grad(lambda x, pool=pool: jnp.sum(jnp.sin(pool(x))))(x)
        for pool in (lambda x: max_pool(x, size), lambda x: nn.max_pool(x, (size, size), strides=(size, size)))
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert max_pool(x, size).dtype == x.dtype


def test_equal_maxima_share_the_gradient():
    grad = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.ones((1, 2, 2, 1)))
    assert grad.ravel().tolist() == [0.25] * 4
