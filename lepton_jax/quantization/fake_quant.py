"""Quantization-aware training as a transform."""

from typing import Any

from lepton_jax import paths
from lepton_jax.errors import collect
from lepton_jax.packed import is_coded, unpack
from lepton_jax.quantization.calibrate import Calibration, MinMax
from lepton_jax.quantization.codebook import Codebook, train_codebook
from lepton_jax.quantization.numerics import Uniform, calibrated, from_integers, quantize, to_integers
from lepton_jax.straight_through import straight_through
from lepton_jax.transform import Transform, hold
from lepton_jax.typing import Array, Path, PyTree, Select


def fake_quant(
    format: Uniform | Codebook | int | None = None,
    *,
    calibration: Calibration = MinMax(),
    select: Select = paths.matrices,
    **uniform: Any,
) -> Transform:
    """Show the weights as they will be once quantized.

    Uniform: ``view = dequantize(quantize(w))`` with the range of the weights as they are at each step; the gradient goes
    straight through. Codebook: the weight's place is taken by trainable centroids, ``view = centroids[codes]``; the codes are
    found by k-means when the transform is initialised and stay; the gradient of a centroid is the sum over its weights. In
    every format 0 is exact, so pruned weights stay pruned.

    Args:
      format: `Uniform` or `Codebook`; or leave it out and give Uniform's own arguments: ``fake_quant(bits=4)``, of which the
        first, the bits, may stand here: ``fake_quant(4)``.
      calibration: finds the range of a uniform format.
      select: which leaves; by default those with two axes or more.
      **uniform: arguments of `Uniform`, in place of `format`.

    Raises:
      ValueError: for a selector that matches nothing, or bits out of range.
      TypeError: for both a format and a uniform format's arguments, or a calibration with a codebook.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = fake_quant(bits=2)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -4.0], [3.0, 0.5]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.0, -4.0], [4.0, 0.0]]

    Source: Jacob et al. 2018, section 3 (uniform); Han, Mao, Dally 2016, section 3 (codebook).
    """
    if isinstance(format, int) and "bits" not in uniform:
        format, uniform = None, {"bits": format, **uniform}
    if format is not None and uniform:
        raise TypeError(f"fake_quant: give either a format or a uniform format's arguments; got {format} and {uniform}.")
    fmt = Uniform(**uniform) if format is None else format
    if isinstance(fmt, Codebook):
        if calibration != MinMax():
            raise TypeError(f"fake_quant: a codebook is found by k-means and takes no calibration; got {calibration}.")
        return train_codebook(fmt, select)
    if not isinstance(fmt, Uniform):
        raise TypeError(f"fake_quant: format must be a Uniform or a Codebook, e.g. Uniform(bits=4); got {fmt!r}.")
    return _fake_quant_uniform(fmt, calibration, select)


def _fake_quant_uniform(fmt: Uniform, calibration: Calibration, select: Select) -> Transform:
    def selected(tree: PyTree) -> dict[Path, Array]:
        leaves = paths.flatten(tree, is_coded)
        return {p: x for p, x in leaves.items() if paths.is_floating(x) and paths.matches(select, p, x)}

    def fake(w: Array) -> Array:
        scale, zero_point = calibrated(w, fmt, calibration)
        return straight_through(w, from_integers(to_integers(w, scale, zero_point, fmt), scale, zero_point, w.dtype))

    def init(params: PyTree) -> tuple[PyTree, tuple[()]]:
        axis = fmt.channel_axis
        with collect(f"fake_quant: channel_axis={axis} is out of range") as problems:
            for path, w in paths.select(params, select).items():
                if axis is not None and not -w.ndim <= axis < w.ndim:
                    problems.append(f"{path}: shape {w.shape}; write -{w.ndim} to {w.ndim - 1}, or deselect it.")
        return params, ()

    def view(params: PyTree, state: tuple[()]) -> PyTree:
        return paths.replace(params, {p: fake(w) for p, w in selected(params).items()}, is_coded)

    def pack(params: PyTree, state: tuple[()]) -> PyTree:
        # An earlier transform's coded leaf is quantized anew, as its view is.
        coded = {p: quantize(unpack(w), fmt, calibration) for p, w in selected(params).items()}
        return paths.replace(params, coded, is_coded)

    return Transform(init, view, hold, pack)
