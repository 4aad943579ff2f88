"""Weights rounded with a trained step (LSQ), and offset (LSQ+), as a transform."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.packed import is_coded, is_packed, register_packed, unpack_coded
from lepton_jax.core.transform import Transform, hold, named
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.core.weight_axes import axes_of
from lepton_jax.formats import Uniform
from lepton_jax.formats.ranges import Calibration, TwiceMean
from lepton_jax.formats.ranges.base import check_calibration
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.rounding import calibrated
from lepton_jax.quantization.learned_step import grid, learned_round, scaled_gradient, step_gradient_factor, uniform_of
from lepton_jax.quantization.weights import packed_levels


@register_packed("value", "step", "offset")
class LearnedWeight:
    """The trainable parameters that stand in a weight's place: the weight itself and the grid it is rounded to.

    The weight keeps its path (``Dense_0/kernel``), so that masks and patterns of other transforms still find it; step and
    offset are vectors at ``Dense_0/kernel/step`` and ``Dense_0/kernel/offset``.

    Args:
      value: the weight, of any dtype.
      step: one for each scale, shape (n,).
      offset: likewise; ``()`` if the format is symmetric.

    Example:
      >>> params, state = lsq(Uniform(2)).init({"kernel": jnp.ones((2, 2))})
      >>> {path: leaf.shape for path, leaf in paths.flatten(params).items()}
      {'kernel': (2, 2), 'kernel/step': (1,)}
    """

    value: Any
    step: Any
    offset: Any


class LsqState(NamedTuple):
    """State of `lsq`: its leaves' first steps, by path."""

    first: dict[Path, Array]


@checked
@named
def lsq(
    format: Uniform | int | str = 8, *, calibration: Calibration | None = None, select: Select = paths.matrices
) -> Transform:
    """Show weights rounded to a grid whose step is trained with them (LSQ); in an affine format its offset too (LSQ+).

    ``view = learned_round(w, step, offset)``; the gradients of step and offset are scaled by ``1 / sqrt(N Q_p)``, N the number
    of weights that share a step. The leaf becomes a `LearnedWeight`. 0 is exact, so pruned weights stay pruned.

    Args:
      format: uniform, with any scale layout; or its bits, or its short name, "int4": with a step for each output channel.
      calibration: finds the range that the first step covers; by default `TwiceMean` (the paper's) in a symmetric format,
        and the whole range in an affine one.
      select: which leaves; by default those with two axes or more.

    Raises:
      ValueError: for a selector that matches nothing, or an axis that a leaf lacks; when the view is computed, if a later
        transform re-parametrised the weight.
      TypeError: for a format that is not uniform.

    Example:
      >>> transform = lsq(2)
      >>> params, state = transform.init({"kernel": jnp.array([[1.0, -1.0], [2.0, -4.0]])})
      >>> transform.view(params, state)["kernel"].tolist()
      [[0.0, 0.0], [3.0, -5.0]]

    Source: Esser et al. 2020, "Learned step size quantization"; Bhalgat et al. 2020, "LSQ+". Deviations as for
    `learned_round`.
    """
    fmt = uniform_of("lsq", format)
    check_calibration("lsq", calibration)
    paths.check_select("lsq: select", select)
    first = TwiceMean() if calibration is None and fmt.symmetric else calibration

    def of(path: Path, w: Array) -> Uniform:
        return fmt.at(axes_of(select, path, w.shape))

    def learned(w: Array, fmt: Uniform) -> LearnedWeight:
        scale, zero_point = calibrated(w, fmt, first)
        offset = () if fmt.symmetric else (-zero_point.astype(jnp.float32) * scale).reshape(-1)
        return LearnedWeight(w, scale.reshape(-1), offset)

    def init(params: PyTree) -> tuple[PyTree, LsqState]:
        weights, nodes = paths.select(params, select), {}
        check_finite("lsq", weights)
        with collect("lsq: cannot find the first steps") as problems:
            for path, w in weights.items():
                try:
                    nodes[path] = learned(w, of(path, w))
                except ValueError as error:
                    problems.append(f"{path}: {error}")
        return paths.replace(params, nodes), LsqState({path: jnp.copy(node.step) for path, node in nodes.items()})

    def laid_out(path: Path, node: Any) -> tuple[Array, Array, Array, Uniform]:
        value: Any = unpack_coded(node.value) if isinstance(node, LearnedWeight) else None
        if not hasattr(value, "dtype") or is_packed(value):
            raise ValueError(
                f"lsq: {path} must be the weight and step that its init put there; a later transform re-parametrised them. "
                "Put that transform first, or deselect the leaf in one of them."
            )
        own = of(path, value)
        shape = own.scale_shape(value.shape)
        step = node.step.reshape(shape)
        return value, step, jnp.zeros_like(step) if own.symmetric else node.offset.reshape(shape), own

    def own(params: PyTree, state: LsqState) -> dict[Path, tuple[Array, Array, Array, Uniform]]:
        leaves = paths.flatten(params, _is_leaf)
        return {path: laid_out(path, leaves.get(path)) for path in state.first}

    def view(params: PyTree, state: LsqState) -> PyTree:
        def seen(w: Array, step: Array, offset: Array, fmt: Uniform) -> Array:
            factor = step_gradient_factor(w.size / step.size, fmt)
            return learned_round(w, scaled_gradient(step, factor), scaled_gradient(offset, factor), fmt)

        return paths.replace(params, {path: seen(*node) for path, node in own(params, state).items()}, _is_leaf)

    def pack(params: PyTree, state: LsqState) -> PyTree:
        def coded(w: Array, step: Array, offset: Array, fmt: Uniform) -> QArray:
            return packed_levels(w, *grid(step, offset, fmt), fmt, w.dtype)

        return paths.replace(params, {path: coded(*node) for path, node in own(params, state).items()}, _is_leaf)

    return Transform(init, view, hold, pack)


def _is_leaf(node: object) -> bool:
    return isinstance(node, LearnedWeight) or is_coded(node)
