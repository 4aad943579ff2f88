"""The small convolutional network that plans are made of; the tests here import their models from beside them."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_models import Net, X


@pytest.fixture(scope="module")
def net():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), X)
    rng = np.random.default_rng(5)
    variables = jax.tree.map(lambda s: jnp.asarray(np.abs(rng.standard_normal(s.shape)), s.dtype), shapes)
    return Net().apply, variables
