"""Quantization-aware training as a transform."""

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import is_traced
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Select
from lepton_jax.formats import Format, Uniform, expand, named_format
from lepton_jax.formats.codebook import Codebook
from lepton_jax.formats.ranges import Calibration
from lepton_jax.formats.ranges.base import check_calibration
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.rounding import calibrated, fake
from lepton_jax.quantization.codebook import train_codebook
from lepton_jax.quantization.weights import on_weights


@checked
@named
def fake_quant(
    format: Format | Codebook | int | str | None = None,
    *,
    calibration: Calibration | None = None,
    select: Select = paths.matrices,
    **uniform: Any,
) -> Transform:
    """Show the weights as they will be once quantized.

    In a number format, ``view = dequantize(quantize(w))`` with the range of the weights as they are at each step; the gradient
    goes straight through. Codebook: the weight's place is taken by trainable centroids, ``view = centroids[codes]``; the codes
    are found by k-means when the transform is initialised and stay; the gradient of a centroid is the sum over its weights. In
    every format but `Binary` 0 is exact, so pruned weights stay pruned; `Binary` refuses a leaf with zeros.

    Args:
      format: any `Format` (`Uniform`, `Float8`, ...) or `Codebook`, or a short name of `lepton_jax.formats.presets`:
        ``fake_quant("int4_g128")``; or a number of bits, ``fake_quant(4)``: symmetric integers with a scale for each
        output channel; or leave it out and give Uniform's own arguments: ``fake_quant(bits=4, symmetric=False)``.
      calibration: finds the range to cover; None: the format's own, see `calibrated`.
      select: which leaves; by default those with two axes or more.
      **uniform: arguments of `Uniform`, in place of `format`; a scale for each output channel, too, unless they say otherwise
        (`channel_axis`, `group_size`).

    Raises:
      ValueError: for a selector that matches nothing, bits out of range, axes that a leaf has not or that are shorter than a
        group, or zeros in a format that has none; from `init`, and, of zeros, from `pack`.
      TypeError: for both a format and a uniform format's arguments, or a calibration with a codebook.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = fake_quant(bits=2)
      >>> params, state = transform.init({"kernel": jnp.array([[6.0, 0.5], [1.0, -3.0]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[4.0, 0.0], [0.0, -4.0]]

    Source: Jacob et al. 2018, section 3 (uniform); Han, Mao, Dally 2016, section 3 (codebook).
    """
    if isinstance(format, int) and "bits" not in uniform:
        format, uniform = None, {"bits": format, **uniform}
    if format is not None and uniform:
        raise TypeError(f"fake_quant: give either a format or a uniform format's arguments; got {format} and {uniform}.")
    granular = {} if uniform.get("group_size") else {"channel_axis": "out"}
    fmt = Uniform(**{**granular, **uniform}) if format is None else named_format("fake_quant: format", format)
    check_calibration("fake_quant", calibration)
    if isinstance(fmt, Codebook):
        if calibration is not None:
            raise TypeError(f"fake_quant: a codebook is found by k-means and takes no calibration; got {calibration}.")
        return train_codebook(fmt, select)
    if not isinstance(fmt, Format):
        raise TypeError(f"fake_quant: format must be a Format or a Codebook, e.g. Uniform(bits=4); got {fmt!r}.")
    return _fake_quant(fmt, calibration, select)


def _fake_quant(fmt: Format, calibration: Calibration | None, select: Select) -> Transform:
    def seen(w: Array, fmt: Format, *_: Any) -> Array:
        return fake(w, fmt, *calibrated(jax.lax.stop_gradient(w), fmt, calibration))

    def coded(w: Array, fmt: Format, *_: Any) -> QArray:
        return quantize(w, fmt, calibration)

    return on_weights("fake_quant", fmt, select, seen=seen, coded=coded, refused=_zeros)


def _zeros(w: Array, fmt: Format) -> str | None:
    """Say that there are zeros which the format has not; what is traced passes."""
    if fmt.has_zero or is_traced(w):
        return None
    scale = expand(calibrated(w, fmt)[0], w.shape, fmt)
    count = int(jnp.sum((w == 0) & (scale != 0)))
    if not count:
        return None
    return f"{count} of {w.size} weights are zero, and {fmt.name} has no zero; take Ternary or Codebook(bits=1), or deselect it"
