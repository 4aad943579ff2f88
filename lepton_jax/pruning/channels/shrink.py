"""Evaluating a graph with fewer channels than it was traced with."""

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.axes import FIXED, Analysis, Axes, analyse
from lepton_jax.graph.axes.flow import Record
from lepton_jax.graph.axes.labels import lengths
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.trace import CallPath, Equation, Traced
from lepton_jax.pruning.channels.derivative import RULES, rule_labels
from lepton_jax.pruning.channels.groups import Keep
from lepton_jax.pruning.channels.held import added, plain, with_removed


class Layout:
    """Which indices of every axis of every value stay.

    Args:
      analysis: of a graph whose removable inputs are labelled at the removed indices and fixed at all others.

    Raises:
      ValueError: if an index that was to be removed turns out fixed; with where and why.
    """

    def __init__(self, analysis: Analysis, names: Sequence[str]):
        self.analysis = analysis
        removed = np.zeros(len(analysis.classes), bool)
        problems = []
        for name, axes in zip(names, analysis.inputs):
            for axis, atoms in enumerate(axes.atoms):
                live = atoms[atoms != FIXED]
                stuck = live[analysis.classes[live] == FIXED]
                if stuck.size:
                    indices = np.flatnonzero(np.isin(atoms, stuck)).tolist()
                    problems.append(f"{name} axis {axis}, indices {indices}: {'; '.join(analysis.reasons(stuck))}")
                removed[analysis.classes[live]] = True
        if problems:
            raise ValueError(
                "The plan removes channels that this function needs. Plan with this function, or exclude them:\n  "
                + "\n  ".join(problems)
            )
        self._kept = ~removed[analysis.classes]
        self._kept[FIXED] = True

    def keep(self, atoms: np.ndarray) -> Keep:
        """Which indices of an axis stay."""
        return self._kept[atoms]

    def keeps(self, value: Axes) -> tuple[Keep, ...]:
        """Which indices of every axis stay."""
        return tuple(self.keep(atoms) for atoms in value.atoms)

    def shape(self, value: Axes) -> tuple[int, ...]:
        """The shape that is left of a value."""
        return tuple(int(self.keep(atoms).sum()) for atoms in value.atoms)

    def dims(self, value: Axes, dims: Sequence[Any]) -> tuple[Any, ...]:
        """What is left of `dims`, a shape as traced; axes that lose nothing stay as they are, symbolic ones too."""
        return tuple(_left(dim, keep) for dim, keep in zip(dims, self.keeps(value)))

    def gone(self, value: Axes, axis: int) -> int:
        """How many indices of an axis go."""
        return int(np.count_nonzero(~self.keep(value.atoms[axis])))

    def changes(self, record: Record) -> bool:
        """Whether any axis of an operation loses an index."""
        return any(not self.keep(atoms).all() for value in (*record.ins, *record.outs) for atoms in value.atoms)


class Shrinker(Interpreter):
    """Evaluates a graph, traced at the original shapes, on variables that have lost channels.

    Operations whose parameters name a shape get the one that is left; constants, position numbers and random bits are
    made at the original shape and cut, so that the kept channels see the same values as in the masked model.
    """

    def __init__(self, traced: Traced, layout: Layout):
        super().__init__(traced)
        self.found: dict[CallPath, tuple[Record, Layout]] = {}
        self.constants: dict[CallPath, tuple[tuple[Axes, ...], Layout]] = {}
        self._learn(layout)

    def _learn(self, layout: Layout) -> None:
        self.found.update((path, (record, layout)) for path, record in layout.analysis.records.items())
        self.constants.update((path, (axes, layout)) for path, axes in layout.analysis.constants.items())

    def evaluate(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath = (), scope: str = ""
    ) -> list[Any]:
        if path and path[-1] in RULES:
            self._learn_rule(jaxpr, consts, values, path)
        if path in self.constants:
            axes, layout = self.constants[path]
            consts = [cut(const, layout.keeps(a)) for const, a in zip(consts, axes)]
        return super().evaluate(jaxpr, consts, values, path, scope)

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if eqn.path not in self.found:
            return None
        record, layout = self.found[eqn.path]
        if not layout.changes(record):
            return None
        values = [
            cut(value, layout.keeps(axes)) if _compat.is_literal(var) else value
            for var, value, axes in zip(eqn.invars, values, record.ins)
        ]
        if eqn.bodies:
            return self.default(eqn, values if eqn.is_plain_call else self._dense(values))
        outs = self._operation(eqn, record, layout, values)
        return [self._with_removed(eqn, record, layout, values, *pair) for pair in zip(record.outs, outs)]

    def dense(self, value: Any) -> Any:
        return plain(value)

    def _with_removed(self, eqn: Equation, record: Record, layout: Layout, values: Sequence[Any], axes: Axes, out: Any) -> Any:
        """The result with what the masked model has at the removed indices, where that is known and not 0."""

        def bind(operands: Sequence[Any], axis: int) -> Any:
            changed = _CHANGED[eqn.primitive](eqn, record, layout) if eqn.primitive in _SHAPED else {}
            sizes = {name: (*size[:axis], 1, *size[axis + 1 :]) for name, size in changed.items()}
            return self.bind(eqn, operands, **sizes)[0]

        return with_removed(eqn, record.ins, [a for a in sorted(axes.alike) if layout.gone(axes, a)], values, out, bind)

    def _operation(self, eqn: Equation, record: Record, layout: Layout, values: Sequence[Any]) -> Sequence[Any]:
        if eqn.primitive == "reduce_sum":
            [axes], summed = record.ins, eqn.params["axes"]
            counts = {a: n for a in summed if (n := layout.gone(axes, a)) and not axes.zero[a]}
            return [added(values[0], counts, lambda value: self.bind(eqn, [value])[0])]
        values = self._dense(values)
        if eqn.primitive in ("iota", "random_bits"):
            return [cut(self.bind(eqn, values)[0], layout.keeps(record.outs[0]))]
        if eqn.primitive == "slice":
            return [_slice(eqn, values[0], layout.keeps(record.ins[0]))]
        changed = _CHANGED.get(eqn.primitive)
        return self.bind(eqn, values, **(changed(eqn, record, layout) if changed else {}))

    def _learn_rule(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], path: CallPath) -> None:
        """Label the derivative rule of a function whose shapes have changed; at every call, for its jaxpr may be another."""
        record, layout = self.found.get(path[:-1], (None, None))
        if record is None or layout is None or all(np.shape(v) == var.aval.shape for v, var in zip(values, jaxpr.invars)):
            return
        saved: list[tuple[Keep, ...]] = []
        if (forward := self.constants.get((*path[:-1], "fwd"))) is not None:
            saved = [forward[1].keeps(value) for value in forward[1].analysis.outputs]
        ins, outs = ([layout.keeps(value) for value in values] for values in (record.ins, record.outs))
        shapes = [(lengths(var.aval.shape), lengths(np.shape(value))) for var, value in zip(jaxpr.invars, values)]
        labels = rule_labels(str(path[-1]), record.eqn, shapes, ins, outs, saved)
        where = f"the derivative rule ({path[-1]}) at {record.eqn.scope or 'the top'}"
        names = [f"input {i} of {where}" for i in range(len(labels))]
        self._learn(Layout(analyse(jaxpr, consts, labels, free_outputs=True, cutting=True, path=path), names))


def cut(value: Any, keeps: Sequence[Keep]) -> Any:
    """Take the indices that stay, of every axis that loses some."""
    for axis, keep in enumerate(keeps):
        if not keep.all():
            value = take(value, np.flatnonzero(keep), axis)
    return value


def take(value: Any, indices: np.ndarray, axis: int) -> Any:
    """Take indices of one axis: a slice if they are evenly spaced, else a gather."""
    steps = np.unique(np.diff(indices))
    if len(indices) == 1 or (len(steps) == 1 and steps[0] > 0):
        step = int(steps[0]) if len(steps) else 1
        return jax.lax.slice_in_dim(jnp.asarray(value), int(indices[0]), int(indices[-1]) + 1, step, axis)
    return jnp.take(jnp.asarray(value), indices, axis=axis, unique_indices=True, indices_are_sorted=True)


def _left(dim: Any, keep: Keep) -> Any:
    """What is left of a length as traced; of a symbolic one (heads folded into the batch), the like fraction."""
    kept, total = int(keep.sum()), len(keep)
    if isinstance(dim, int | np.integer):
        return kept
    common = gcd(kept, total)
    return dim // (total // common) * (kept // common)


def _slice(eqn: Equation, value: Any, keeps: Sequence[Keep]) -> Any:
    """Slice out what is left of the indices that the original slice takes."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for axis, (keep, cut_) in enumerate(zip(keeps, zip(starts, limits, strides))):
        if keep.all():
            value = jax.lax.slice_in_dim(value, *cut_, axis)
            continue
        wanted = np.arange(len(keep))[slice(*cut_)]
        wanted = wanted[keep[wanted]]
        if len(wanted) != value.shape[axis]:
            # Where a kept index stands now: the number of kept ones before it.
            value = take(value, (np.cumsum(keep) - 1)[wanted], axis)
    return value


def _sliced_sizes(eqn: Equation, record: Record, layout: Layout) -> dict[str, Any]:
    axes = zip(eqn.params["slice_sizes"], layout.keeps(record.ins[0]))
    # An axis that loses an index is taken whole.
    return {"slice_sizes": tuple(size if keep.all() else _left(size, keep) for size, keep in axes)}


def _conv(eqn: Equation, record: Record, layout: Layout) -> dict[str, Any]:
    groups = eqn.params["feature_group_count"]
    feature = eqn.params["dimension_numbers"].lhs_spec[1]
    kept = layout.shape(record.ins[0])[feature]
    # Whole groups go.
    return {"feature_group_count": groups * kept // record.ins[0].shape[feature]} if groups > 1 else {}


def _pad(eqn: Equation, record: Record, layout: Layout) -> dict[str, Any]:
    config = []
    axes = zip(record.ins[0].atoms, record.outs[0].atoms, eqn.params["padding_config"])
    for old, new, (low, high, interior) in axes:
        before, after = layout.keep(old), layout.keep(new)
        # Negative padding cuts indices of the operand off.
        low = int(after[:low].sum()) if low > 0 else -int(before[:-low].sum())
        high = int(after[len(after) - high :].sum()) if high > 0 else -int(before[len(before) + high :].sum())
        config.append((low, high, interior))
    return {"padding_config": tuple(config)}


def _split(eqn: Equation, record: Record, layout: Layout) -> dict[str, Any]:
    axis = eqn.params["axis"]
    keeps = [layout.keeps(out)[axis] for out in record.outs]
    return {"sizes": tuple(_left(size, keep) for size, keep in zip(eqn.params["sizes"], keeps))}


def _broadcast(eqn: Equation, record: Record, layout: Layout) -> dict[str, Any]:
    return {"shape": layout.dims(record.outs[0], eqn.params["shape"])}


def _reshape(eqn: Equation, record: Record, layout: Layout) -> dict[str, Any]:
    return {"new_sizes": layout.dims(record.outs[0], eqn.params["new_sizes"])}


_CHANGED: Mapping[str, Callable[[Equation, Record, Layout], dict[str, Any]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "pad": _pad,
    "split": _split,
    "conv_general_dilated": _conv,
    "gather": _sliced_sizes,
    "dynamic_slice": _sliced_sizes,
}
"""The parameters that name a shape, by primitive."""
_SHAPED = ("broadcast_in_dim", "reshape")
"""Those through which what removed channels hold is carried."""
