"""PACT: activations clipped at a trained height."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.typing import Array
from lepton_jax.formats import Uniform
from lepton_jax.formats.ranges import Calibration
from lepton_jax.leaves.quantized import Quantized
from lepton_jax.leaves.rounding import fake
from lepton_jax.quantization.quantizers import coded


@checked
@dataclasses.dataclass(frozen=True)
class Pact:
    """Activations clipped at a trained height ``a`` and rounded to even levels.

    ``y = clip(x, 0, a)``, rounded to ``round(y (2^k - 1) / a) a / (2^k - 1)``; ``dy/da = 1`` where ``x >= a``, else 0, and
    ``dy/dx = 1`` where ``0 < x < a``, else 0. `signed` clips to ``[-a, a]``, in steps of ``a / (2^(k-1) - 1/2)``, with
    ``dy/da = -1`` below.

    The paper adds an L2 penalty on ``a`` to the loss; the site's ``alpha`` is a parameter like any other, so decay it so.

    Args:
      bits: k, 2 to 8.
      signed: for activations without a ReLU before them.
      calibration: finds the first height; None: everything (`MinMax`).

    Raises:
      ValueError: for bits out of range.

    Example:
      >>> quantizer = Pact(2)
      >>> site = quantizer.init(jnp.array(0.0), jnp.array(3.0))
      >>> quantizer(jnp.array([-1.0, 1.2, 7.0]), site).tolist()
      [0.0, 1.0, 3.0]
      >>> jax.grad(lambda site: jnp.sum(quantizer(jnp.array([-1.0, 1.2, 7.0]), site)))(site)["alpha"].item()
      1.0

    Source: Choi et al. 2018, "PACT: parameterized clipping activation", equations 1 to 3. Deviations: `signed`; a height that
    training drove to zero or below counts as the smallest float32.
    """

    bits: int = 4
    signed: bool = False
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        check_whole("Pact: bits", self.bits, 2, 8)

    @property
    def format(self) -> Uniform:
        """The number format of its integers."""
        return Uniform(self.bits, signed=self.signed)

    def init(self, low: Array, high: Array) -> dict[str, Array]:
        """Return the site for a calibrated range: clipped where it ends."""
        top = jnp.maximum(-low, high) if self.signed else high
        return {"alpha": jnp.where(top > 0, top, 1).astype(jnp.float32)}

    def __call__(self, x: Array, site: Mapping[str, Array]) -> Array:
        scale, zero_point = self._grid(site)
        rounded = fake(jax.lax.stop_gradient(x), self.format, scale, zero_point)
        return straight_through(_clip(x, site["alpha"], self.signed), jax.lax.stop_gradient(rounded))

    def quantized(self, x: Array, site: Mapping[str, Array]) -> Quantized:
        """Return the codes, which are read back as what calling shows."""
        return coded(x, self.format, *self._grid(jax.lax.stop_gradient(site)))

    def _grid(self, site: Mapping[str, Array]) -> tuple[Array, Array]:
        scale = jnp.maximum(site["alpha"].astype(jnp.float32) * (1 / self.format.steps), jnp.finfo(jnp.float32).tiny)
        return scale, jnp.zeros(scale.shape, jnp.int32)


def _clip(x: Array, alpha: Array, signed: bool) -> Array:
    """Return x clipped, with the derivatives of the paper at the ends too, where those of min and max are halves."""
    top = alpha.astype(x.dtype)
    clipped = jnp.where(x >= top, top, x)
    return jnp.where(x <= -top, -top, clipped) if signed else jnp.where(x > 0, clipped, jnp.zeros((), x.dtype))
