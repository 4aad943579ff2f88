"""Which rule serves which primitive."""

from collections.abc import Callable, Mapping, Sequence

from lepton_jax.graph.axes import elementwise, indexing, linear, reductions, reshape, shapes
from lepton_jax.graph.axes.labels import Axes, Labels
from lepton_jax.graph.trace import Equation

Rule = Callable[[Labels, Equation, Sequence[Axes]], list[Axes]]
"""(labels, operation, labels of its operands) -> labels of its results."""


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = dict.fromkeys(elementwise.NAMES, elementwise.elementwise)
    rules |= {"dot_general": linear.dot_general, "conv_general_dilated": linear.conv, "reduce_sum": reductions.reduce_sum}
    names = "reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
    rules |= dict.fromkeys(names.split(), reductions.reduce_fixed)
    rules |= dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], reductions.cumulative)
    rules |= {"sort": reductions.sort, "top_k": reductions.top_k}
    rules |= dict.fromkeys(["reduce_window_max", "reduce_window_min", "reduce_window_sum"], reductions.window)
    rules |= {"reshape": reshape.reshape, "transpose": shapes.transpose, "squeeze": shapes.squeeze, "rev": shapes.rev}
    rules |= {"broadcast_in_dim": shapes.broadcast_in_dim, "concatenate": shapes.concatenate, "pad": shapes.pad}
    rules |= {"slice": shapes.slices, "split": shapes.split, "stack": shapes.stack, "unstack": shapes.unstack}
    rules |= {"tile": shapes.tile}
    rules |= {"gather": indexing.gather, "dynamic_slice": indexing.dynamic_slice}
    rules |= {"dynamic_update_slice": indexing.dynamic_update_slice}
    sources = "iota random_bits random_seed random_wrap random_unwrap random_fold_in random_split random_clone"
    return rules | dict.fromkeys(sources.split(), shapes.source)


RULES: Mapping[str, Rule] = _table()
"""An operation that is not here fixes all axes of its operands and results, and is reported by name."""
