"""A norm by the root of the mean square."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array


class RMSNorm(nn.Module):
    """Compute ``x / sqrt(mean(x^2) + epsilon) * (offset + scale)`` over the last axis, in float32.

    Args:
      epsilon: what is added to the mean square.
      offset: 1 for models whose scale is stored as its distance from 1, as Gemma's; else 0.
      dtype: of the result; None: that of x and scale together.

    Example:
      >>> y, _ = RMSNorm(epsilon=0.0).init_with_output(jax.random.key(0), jnp.array([[3.0, -4.0]]))
      >>> [round(float(v), 4) for v in y[0]]
      [0.8485, -1.1314]

    Source: B. Zhang and R. Sennrich, Root mean square layer normalization, 2019, equation 4.
    """

    epsilon: float = 1e-6
    offset: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the shape of x."""
        start = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        factor = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        y = y * (factor + self.offset if self.offset else factor)
        return y.astype(self.dtype or jnp.result_type(x.dtype, scale.dtype))
