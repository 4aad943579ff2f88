"""From a model to a plan: choosing the channels, the least important, as many as were asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.finite import check_finite
from lepton_jax.core.paths import flatten, is_floating, select
from lepton_jax.core.typing import PyTree, Select
from lepton_jax.graph.axes import FIXED, Analysis, analyse_traced
from lepton_jax.graph.origins import unread
from lepton_jax.graph.trace import Apply, trace
from lepton_jax.pruning.channels.amount import Amount, macs, parameters
from lepton_jax.pruning.channels.groups import Group, find_groups, fixed_places, number
from lepton_jax.pruning.channels.importance import Elements, Importance, Norm, Normalize, Reduce, channel_scores
from lepton_jax.pruning.channels.plan import Plan
from lepton_jax.pruning.criteria import Criterion

Of = Literal["channels", "macs", "parameters"]
Ranking = Literal["group", "global"]
Chosen = list[tuple[int, ...]]
"""The numbers of the removed channels of every group."""
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "of": ("channels", "macs", "parameters"),
    "ranking": ("group", "global"),
    "reduce": ("sum", "mean", "max"),
    "normalize": ("none", "mean", "max"),
}


@checked
def plan(
    apply: Apply | Sequence[Apply],
    variables: PyTree,
    *inputs: Any,
    fraction: float,
    criterion: Importance | Criterion = Norm(order=1),
    of: Of = "channels",
    ranking: Ranking = "group",
    exclude: Select = (),
    round_to: int = 1,
    reduce: Reduce = "mean",
    normalize: Normalize = "mean",
    keywords: Mapping[str, Any] | None = None,
) -> Plan:
    """Find the groups of coupled channels of a model and choose the least important ones for removal.

    The graph of ``apply(variables, *inputs)`` is labelled axis by axis: what adds up, what is contracted, what is
    concatenated tells which indices of which variables can only go together. Inputs and outputs keep their shapes.

    Args:
      apply: a pure function ``apply(variables, *inputs, **keywords)``; or several of the same arguments, such as that of
        training and that of evaluation, for one plan that suits them all.
      variables: its parameters and state.
      *inputs: example inputs; shapes and dtypes matter, values don't.
      fraction: how much to remove, in [0, 1). Of channels: at most; of MACs or parameters: at least, as little more as
        possible.
      criterion: what a channel is worth: an `Importance`, or any criterion for single weights, summed.
      of: what `fraction` is a fraction of; all channels that are not excluded, all multiply-accumulates of dot products and
        convolutions at these inputs, or all parameters.
      ranking: 'group', every group loses the same fraction; or 'global', the lowest scores of all groups go.
      exclude: leaves that must keep their shape, by path (globs or a predicate).
      round_to: what is left of a group is a multiple of this many channels, or all of them. ONNX Runtime convolves blocks of 8
        or 16 channels: a net cut to other numbers can be slower there than the whole.
      reduce: how the scores of a channel's slices become one.
      normalize: what a group's scores are divided by, for the global ranking.
      keywords: further arguments of `apply`, e.g. ``{'train': False}`` or ``{'rngs': {'dropout': key}}``.

    Returns:
      The plan. At least one channel of every group, and one index of every axis of every value, is left. Leaves that no
      function reads (auxiliary heads, moving averages) are left alone and named.

    Raises:
      TypeError: if `apply` cannot be traced.
      ValueError: for a setting out of range, an `exclude` that matches nothing, a criterion that says nothing about a group,
        weights that are not finite, a model without channels to remove, or a fraction that cannot be reached.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> apply = lambda v, x: jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> variables = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.ones((3, 1))}
      >>> half = plan(apply, variables, jnp.ones((1, 1)), fraction=1 / 3)
      >>> half.shrink(variables)["up"].tolist()
      [[3.0, 2.0]]
      >>> half.rewrite(apply)(half.shrink(variables), jnp.ones((1, 1))).tolist()
      [[5.0]]

    Source: Fang, Ma, Song, Mi, Wang 2023, "DepGraph: Towards any structural pruning". Deviation: dependencies are found for
    single indices by labels on the jaxpr, not for layers by rules for modules.
    """
    check_fraction("fraction", fraction)
    for name, given in (("of", of), ("ranking", ranking), ("reduce", reduce), ("normalize", normalize)):
        if given not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}; got {given!r}.")
    if round_to < 1:
        raise ValueError(f"round_to must be 1 or more channels; got {round_to}.")
    traced = trace(_together(apply), variables, *inputs, **(keywords or {}))
    shapes = {path: tuple(aval.shape) for path, aval in zip(traced.variables, traced.in_avals)}
    analysis = analyse_traced(traced, number(shapes.values()))
    aside = unread(traced)
    groups = tuple(g for g in find_groups(traced, analysis) if not {s.path for s in g.slices} <= set(aside))
    chosen_for = _without(groups, set(select(variables, exclude)) if exclude != () else set())
    fixed = fixed_places(traced, analysis, groups, aside)
    empty = Plan(shapes=shapes, groups=groups, fixed=fixed, unknown=analysis.unknown, unread=aside)
    if fraction == 0:
        return empty
    if not chosen_for:
        raise ValueError(f"{traced.name} has no channels to remove{' that are not excluded' if groups else ''}.\n{empty}")
    importance = criterion if isinstance(criterion, Importance) else Elements(criterion=criterion)
    held = flatten(variables)
    check_finite("plan", {s.path: held[s.path] for group in chosen_for for s in group.slices if is_floating(held[s.path])})
    raw = importance.scores(held, chosen_for)
    scores = channel_scores(chosen_for, raw, reduce, normalize)
    amount = {"channels": None, "macs": macs(analysis), "parameters": parameters(traced, analysis)}[of]
    classes = [_classes(shapes, analysis, traced.variables, group) for group in chosen_for]
    axes = _bare_axes(analysis, classes)
    chosen = _choose(scores, classes, axes, amount, fraction, ranking, round_to, len(analysis.classes), of)
    removed = dict(zip(map(id, chosen_for), chosen))
    return replace(empty, groups=tuple(replace(g, removed=removed.get(id(g), ())) for g in groups))


def _together(apply: Apply | Sequence[Apply]) -> Apply:
    """Return the function that calls several with the same arguments."""
    if callable(apply):
        return apply
    if not isinstance(apply, Sequence) or not apply or not all(map(callable, apply)):
        raise TypeError(f"plan: apply must be a pure function apply(variables, *inputs), or several; got {apply!r}.")
    several = tuple(apply)

    def together(variables: PyTree, *inputs: Any, **keywords: Any) -> PyTree:
        return tuple(one(variables, *inputs, **keywords) for one in several)

    together.__qualname__ = " and ".join(getattr(one, "__qualname__", type(one).__name__) for one in several)
    return together


def _without(groups: tuple[Group, ...], excluded: set[str]) -> list[Group]:
    return [group for group in groups if not excluded & {s.path for s in group.slices}]


def _classes(shapes: Mapping[str, Any], analysis: Analysis, paths: tuple[str, ...], group: Group) -> np.ndarray:
    """The class of every channel of a group."""
    first = group.slices[0]
    atoms = analysis.inputs[paths.index(first.path)].atoms[first.axis]
    return analysis.classes[atoms[first.indices[:, 0]]]


def _bare_axes(analysis: Analysis, classes: list[np.ndarray]) -> list[np.ndarray]:
    """The axes of values in the graph that a choice might leave without any index.

    An axis with a fixed index is safe, and so is one that holds a whole group, which keeps a channel.
    """
    removable = np.zeros(len(analysis.classes), bool)
    removable[np.concatenate(classes)] = True
    removable[FIXED] = False
    arrays = {id(a): a for r in analysis.records.values() for v in (*r.ins, *r.outs) for a in v.atoms}
    found: dict[bytes, np.ndarray] = {}
    for atoms in arrays.values():
        own = np.unique(analysis.classes[atoms]) if len(atoms) > 1 else np.zeros(0, np.int64)
        if own.size and removable[own].all():
            found.setdefault(own.tobytes(), own)
    groups = [set(c.tolist()) for c in classes]
    return [own for own in found.values() if not any(group <= set(own.tolist()) for group in groups)]


def _choose(
    scores: list[np.ndarray],
    classes: list[np.ndarray],
    axes: list[np.ndarray],
    amount: Amount | None,
    fraction: float,
    ranking: Ranking,
    round_to: int,
    n_classes: int,
    of: str,
) -> Chosen:
    count, at_level = levels(scores, ranking, round_to)

    def choose(level: int) -> Chosen:
        return spare(at_level(level), scores, classes, axes)

    def gone(level: int) -> float:
        assert amount is not None
        removed = np.zeros(n_classes, bool)
        for own, channels in zip(classes, choose(level)):
            removed[own[list(channels)]] = True
        return 1 - amount.total(removed) / whole

    if amount is None:
        if ranking == "global":
            return choose(fraction_of(fraction, count - 1))
        # The level is the last whose fraction is not above the wanted one.
        sizes = {len(s) for s in scores}
        steps = sorted({j / n for n in sizes for j in range(n + 1)})
        return choose(int(np.searchsorted(steps, fraction + 1e-9, side="right")) - 1)
    whole = max(amount.total(np.zeros(n_classes, bool)), 1)
    low, high = 0, count - 1
    if gone(high) < fraction:
        raise ValueError(
            f"{fraction:.0%} of the {of} cannot be removed: with one channel left in every group, and multiples of "
            f"{round_to}, {gone(high):.1%} are. Exclude less, or lower the fraction."
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(middle) >= fraction else (middle + 1, high)
    return choose(low)


def limit(size: int, removed: int, round_to: int) -> int:
    """The most channels, up to `removed`, that a group can lose: one stays, and the rest is a multiple of `round_to`.

    Example:
      >>> limit(64, 30, 1), limit(64, 30, 8), limit(64, 64, 8), limit(10, 9, 8)
      (30, 24, 56, 2)
    """
    left = max(size - removed, 1)
    return size - min(size, -(-left // round_to) * round_to)


def levels(scores: Sequence[np.ndarray], ranking: Ranking, round_to: int) -> tuple[int, Callable[[int], Chosen]]:
    """All cuts from none to the most, in order: how many there are, and a function from the number of one to its channels.

    By group, every group loses the same fraction; globally, the channels of the lowest scores go, whatever their group.

    Args:
      scores: float[channels] of every group.
      ranking: by group or globally.
      round_to: the number of channels left in a group is a multiple of this (or its original number).
    """
    orders = [np.argsort(s, kind="stable") for s in scores]
    sizes = [len(s) for s in scores]

    def choose(counts: Sequence[int]) -> Chosen:
        return [tuple(sorted(order[: limit(len(order), int(n), round_to)].tolist())) for order, n in zip(orders, counts)]

    if ranking == "group":
        steps = sorted({j / n for n in set(sizes) for j in range(n + 1)})
        return len(steps), lambda level: choose([fraction_of(steps[level], n) for n in sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(np.concatenate(scores), kind="stable")]
    return len(owner) + 1, lambda level: choose(np.bincount(owner[:level], minlength=len(sizes)).tolist())


def fraction_of(fraction: float, n: int) -> int:
    """The whole number of channels that is at most a fraction of `n`, but for rounding of the fraction."""
    return int(np.floor(fraction * n + 1e-9))


def spare(chosen: Chosen, scores: Sequence[np.ndarray], classes: Sequence[np.ndarray], axes: Sequence[np.ndarray]) -> Chosen:
    """Put back the best channel of every axis that would be left without any.

    Args:
      chosen: the removed channels of every group.
      scores: float[channels] of every group.
      classes: int[channels] of every group, the class of each channel.
      axes: int[n] of every axis of every value, the classes of its indices.
    """
    removed = {int(classes[g][c]): (float(scores[g][c]), g, c) for g, cs in enumerate(chosen) for c in cs}
    for axis in axes:
        own = [int(c) for c in np.unique(axis)]
        if own and all(c in removed for c in own):
            del removed[max(own, key=lambda c: removed[c])]
    kept = {(g, c) for _, g, c in removed.values()}
    return [tuple(c for c in cs if (g, c) in kept) for g, cs in enumerate(chosen)]
