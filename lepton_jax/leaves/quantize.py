"""`quantize` an array to a packed leaf, and `dequantize` it."""

from __future__ import annotations

from typing import overload

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.kinds import check_kind
from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format
from lepton_jax.formats.codebook import Codebook, k_means
from lepton_jax.formats.ranges import Calibration
from lepton_jax.leaves.codebook import CodebookArray, coded
from lepton_jax.leaves.qarray import QArray


@overload
def quantize(x: Array, fmt: Format, calibration: Calibration | None = None) -> QArray: ...


@overload
def quantize(x: Array, fmt: Codebook, calibration: None = None) -> CodebookArray: ...


def quantize(x: Array, fmt: Format | Codebook, calibration: Calibration | None = None) -> QArray | CodebookArray:
    """Quantize an array: calibrate, round, pack.

    Args:
      x: floating array of any shape.
      fmt: the number format; or a codebook, which is found by k-means.
      calibration: finds the range to cover; None: the format's own, see `calibrated`.

    Returns:
      packed leaf of the same shape and dtype.

    Raises:
      TypeError: for what is no number format, or an array that is not of floats.
      ValueError: if the array has not the axes that the format names, or an axis is shorter than a group.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> q = quantize(jnp.array([0.0, 1.0, 2.0, 3.0]), Uniform(bits=2, symmetric=False))
      >>> q.qvalue.tolist(), q.scale.tolist(), dequantize(q).tolist()
      ([0, 1, 2, 3], [1.0], [0.0, 1.0, 2.0, 3.0])

    Source: Jacob et al. 2018, "Quantization and training of neural networks", equation 1.
    """
    if not isinstance(fmt, (Format, Codebook)):
        raise TypeError(f"quantize: takes a number format, e.g. Uniform(bits=4); got {fmt!r}.")
    check_kind("quantize: x", x, Array)
    check_kind("quantize: calibration", calibration, Calibration | None)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"quantize: takes an array of floats; got {x.dtype}, shape {x.shape}. Cast it first.")
    if isinstance(fmt, Codebook):
        if calibration is not None:
            raise TypeError(f"quantize: a codebook is found by k-means and takes no calibration; got {calibration}.")
        table, places = k_means(x.astype(jnp.float32), fmt.centroids)
        return coded(fmt, table, places, x.dtype)
    return QArray.rounded(x, fmt, calibration)


@checked
def dequantize(q: QArray | CodebookArray) -> Array:
    """Return the values in the dense leaf's dtype, computed in float32; of integers, ``(qvalue - zero_point) * scale``.

    Example:
      >>> from lepton_jax.formats import Uniform
      >>> dequantize(quantize(jnp.array([-1.2, 127.5]), Uniform(bits=8))).tolist()  # the scale is 1
      [-1.0, 127.0]
    """
    return q.unpack()
