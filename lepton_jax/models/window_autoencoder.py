"""An autoencoder of windows of time series."""

from typing import Any

from flax import linen as nn

from lepton_jax.core.typing import Array


class WindowAutoencoder(nn.Module):
    """Reconstruct the points of a window through a narrow layer.

    Dense layers with ReLU between; the narrow one is linear.

    Args:
      points: of a window; what stands behind them in the input is not read.
      hidden: width of the layers around the narrow one.
      code: width of the narrow one.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = WindowAutoencoder(points=8)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 9, 1, 1)))[0].shape
      (2, 8)

    Source: M. Sakurada and T. Yairi, Anomaly detection using autoencoders with nonlinear dimensionality reduction, 2014.
    """

    points: int = 48
    hidden: int = 64
    code: int = 8
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``[B, points]`` of windows ``[B, L, 1, 1]``, of which the first `points` are read."""
        x = x.reshape(x.shape[0], -1)[:, : self.points]
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="in")(x))
        x = nn.Dense(self.code, dtype=self.dtype, name="code")(x)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="out")(x))
        return nn.Dense(self.points, dtype=self.dtype, name="points")(x)
