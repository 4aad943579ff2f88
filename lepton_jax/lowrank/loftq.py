"""A quantized weight and a low-rank correction that makes up for the rounding."""

from typing import Literal

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Array
from lepton_jax.formats import Format
from lepton_jax.formats.ranges import Calibration, MinMax
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.quantize import dequantize, quantize
from lepton_jax.lowrank.svd import Svd

First = Literal["quantized", "low_rank"]


@checked
def loftq(
    weight: Array,
    rank: int,
    format: Format,
    *,
    calibration: Calibration = MinMax(),
    rounds: int = 5,
    first: First = "quantized",
    method: Svd = Svd(),
) -> Adapted:
    """Return ``W ~ Q + u v``, Q quantized and u v of low rank, by turns.

    Each round: ``Q = quantize(W - u v)``, then ``u v`` the best of its rank for ``W - Q``. It begins with ``u v = 0``, or, for
    ``first="low_rank"``, with the best for W itself: low rank plus quantized residual; and ends with the correction. The error
    is at most that of Q alone.

    Args:
      weight: two axes or more, floating.
      rank: of the correction, 1 to the smaller side.
      format: that of Q: any that `lepton_jax.quantization.quantize` takes.
      calibration: finds the range of the format.
      rounds: 1 or more.
      first: what the first round begins with.
      method: says how the weight is read as a matrix.

    Raises:
      ValueError: for a rank or rounds out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.quantization import Uniform
      >>> weight = jnp.array([[1.0, 0.3], [0.6, -0.2]])
      >>> leaf = loftq(weight, 1, Uniform(bits=2))
      >>> bool(jnp.sum((leaf.unpack() - weight) ** 2) < jnp.sum((leaf.base.unpack() - weight) ** 2))
      True

    Source: Li et al. 2024, "LoftQ: LoRA-fine-tuning-aware quantization for large language models", algorithm 1.
    """
    check_whole("loftq: rounds", rounds, 1)
    check_whole("loftq: rank", rank, 1, method.max_rank(tuple(weight.shape)))
    if first not in ("quantized", "low_rank"):
        raise ValueError(f"loftq: first must be 'quantized' or 'low_rank'; got {first!r}.")
    residual = weight if first == "quantized" else weight - method.factorize(weight, rank).unpack()
    for number in range(rounds):
        base = quantize(residual, format, calibration)
        factors = method.factorize(weight - dequantize(base), rank)
        if number < rounds - 1:
            residual = weight - factors.unpack()
    return Adapted(base, factors)
