"""Strict defaults for every test: no warning passes unseen, no array is broadcast across ranks by accident."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key; split it, or fold numbers in, for more."""
    return jax.random.key(0)
