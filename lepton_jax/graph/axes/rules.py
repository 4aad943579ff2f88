"""Which rule serves which primitive."""

from collections.abc import Callable, Mapping, Sequence

from lepton_jax.graph.axes import collectives, elementwise, indexing, linear, reductions, reshape, shapes
from lepton_jax.graph.axes.labels import Axes, Labels
from lepton_jax.graph.primitives import RAGGED
from lepton_jax.graph.trace import Equation

Rule = Callable[[Labels, Equation, Sequence[Axes]], list[Axes]]
"""(labels, operation, labels of its operands) -> labels of its results."""


_REDUCTIONS = ("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_WINDOWS = ("reduce_window_max", "reduce_window_min", "reduce_window_sum")
_SCATTERS = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
_OVER_DEVICES = ("psum", "psum_invariant", "pmax", "pmin")
_KEYS = ("random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split", "random_clone")

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(elementwise.NAMES, elementwise.elementwise),
    "dot_general": linear.dot_general,
    "conv_general_dilated": linear.conv,
    **dict.fromkeys(RAGGED, linear.ragged_dot),
    "fft": linear.fft,
    "reduce_sum": reductions.reduce_sum,
    **dict.fromkeys(_REDUCTIONS, reductions.reduce_fixed),
    **dict.fromkeys(_CUMULATIVE, reductions.cumulative),
    **dict.fromkeys(_WINDOWS, reductions.window),
    "sort": reductions.sort,
    "top_k": reductions.top_k,
    "reshape": reshape.reshape,
    "broadcast_in_dim": shapes.broadcast_in_dim,
    "transpose": shapes.transpose,
    "squeeze": shapes.squeeze,
    "rev": shapes.rev,
    "concatenate": shapes.concatenate,
    "split": shapes.split,
    "stack": shapes.stack,
    "unstack": shapes.unstack,
    "tile": shapes.tile,
    "slice": shapes.slices,
    "pad": shapes.pad,
    "gather": indexing.gather,
    "dynamic_slice": indexing.dynamic_slice,
    "dynamic_update_slice": indexing.dynamic_update_slice,
    **dict.fromkeys(_SCATTERS, indexing.scatter),
    **dict.fromkeys(_OVER_DEVICES, collectives.reduced),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), collectives.all_gather),
    "reduce_scatter": collectives.reduce_scatter,
    "all_to_all": collectives.all_to_all,
    "axis_index": shapes.source,
    "iota": shapes.source,
    "random_bits": shapes.source,
    **dict.fromkeys(_KEYS, shapes.source),
}
"""An operation that is not here fixes all axes of its operands and results, and is reported by name."""

ALIKE = elementwise.ALIKE | {"broadcast_in_dim", "transpose", "squeeze", "reshape", "reduce_sum"}
"""The operations through which it is followed what removed indices hold, where that is the same at all."""
