"""The analysis: one forward pass over a graph that labels every axis of every value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lepton_jax.core.arguments import checked
from lepton_jax.graph.axes.flow import Flow, Record
from lepton_jax.graph.axes.labels import FIXED, Axes, Labels, lengths
from lepton_jax.graph.trace import CallPath, Traced

_MAX_PASSES = 64
"""A reshape has a handful of carriers, and like ones advance together. An analysis stopped early fixes too much, no less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """The labels of all values of a graph, and the classes that they fall into.

    Two indices are in one class if and only if they are removed together; class 0 is that of fixed indices.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph import trace
      >>> variables = {"down": jnp.ones((2, 1)), "up": jnp.ones((1, 2))}
      >>> traced = trace(lambda v, x: jnp.abs(x @ v["up"]) @ v["down"], variables, jnp.ones((5, 1)))
      >>> labels = [(np.array([1, 2]), np.array([3])), (np.array([4]), np.array([5, 6]))]
      >>> found = analyse_traced(traced, labels)
      >>> [found.classes[atoms].tolist() for atoms in found.inputs[1].atoms]  # of `up`: its input is fixed
      [[0], [1, 2]]
    """

    inputs: tuple[Axes, ...]
    outputs: tuple[Axes, ...]
    records: Mapping[CallPath, Record]
    classes: np.ndarray
    """The class of every atom."""
    fixes: Sequence[tuple[np.ndarray, str]]
    unknown: tuple[str, ...]
    """The primitives that have no rule and so fixed their axes."""
    joined: np.ndarray
    """The class that every atom would have if nothing were fixed."""
    constants: Mapping[CallPath, tuple[Axes, ...]]
    """The labels of the constants of the jaxpr at every path."""

    @cached_property
    def _why(self) -> dict[int, dict[str, None]]:
        found: dict[int, dict[str, None]] = {}
        for atoms, why in self.fixes:
            for family in np.unique(self.joined[atoms]):
                found.setdefault(int(family), {})[why] = None
        return found

    def reasons(self, atoms: np.ndarray) -> tuple[str, ...]:
        """What fixed these indices or others that go with them."""
        found: dict[str, None] = {}
        for family in np.unique(self.joined[atoms[atoms != FIXED]]):
            found |= self._why.get(int(family), {})
        return tuple(found)


@checked
def analyse(
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[tuple[np.ndarray, ...] | None],
    updates: Mapping[int, int] | None = None,
    *,
    free_outputs: bool = False,
    cutting: bool = False,
    path: CallPath = (),
) -> Analysis:
    """Label every axis of every value of a graph.

    One forward pass emits pairs of equal atoms; connected components make them classes. It is repeated while a
    reshape has to change the axis that carries its labels, which costs a few passes whatever the depth.

    Args:
      jaxpr: an open jaxpr.
      consts: the values of its constants.
      inputs: for every input the labels of its axes, 0 where fixed, or None for an input all of whose axes are fixed. Every
        other atom stands for a slice of variables that may be removed, and that is 0 in the masked form.
      updates: output index -> input index, for outputs that are updated state and must keep the input's shape.
      free_outputs: whether the outputs may lose indices; else they are fixed.
      cutting: whether the labelled indices are those to be removed, and 0 means that an index stays.
      path: where the jaxpr stands, if it is an inner one.

    Returns:
      The labels, classes and reasons.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph import trace
      >>> variables = {"down": jnp.ones((2, 1)), "up": jnp.ones((1, 2))}
      >>> traced = trace(lambda v, x: jnp.abs(x @ v["up"]) @ v["down"], variables, jnp.ones((5, 1)))
      >>> labels = [(np.array([1, 2]), np.array([3])), (np.array([4]), np.array([5, 6]))]
      >>> found = analyse(traced.jaxpr, traced.consts, [*labels, None])
      >>> found.classes[5:].tolist()  # the columns of `up` go with the rows 1 and 2 of `down`
      [1, 2]
    """
    failed: Mapping[Any, Mapping[Any, str]] = {}
    unknown: dict[str, None] = {}
    largest = max((int(a.max()) for atoms in inputs for a in atoms or () if a.size), default=0)
    for _ in range(_MAX_PASSES):
        labels = Labels(failed, cutting=cutting, variables=largest)
        flow, ins = Flow(labels), _inputs(labels, jaxpr, inputs)
        outs = flow.body(jaxpr, consts, ins, path)
        for index, out in enumerate(outs):
            if updates and index in updates:
                for new, old in zip(out.atoms, ins[updates[index]].atoms):
                    labels.pair(new, old, "updated state")
            elif not free_outputs:
                labels.fix_all([out], "an output")
        unknown |= labels.unknown
        analysis = _analysis(flow, ins, outs, tuple(unknown))
        advanced = _advance(labels, analysis) or _narrowed(labels, analysis)
        if advanced is None:
            break
        failed = advanced
    return analysis


@checked
def analyse_traced(traced: Traced, variables: Sequence[tuple[np.ndarray, ...]], *, cutting: bool = False) -> Analysis:
    """Label a traced function whose variables' axes have the given labels; inputs and other outputs are fixed.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph import trace
      >>> variables = {"down": jnp.ones((2, 1)), "up": jnp.ones((1, 2))}
      >>> traced = trace(lambda v, x: jnp.abs(x @ v["up"]) @ v["down"], variables, jnp.ones((5, 1)))
      >>> labels = [(np.array([1, 2]), np.array([3])), (np.array([4]), np.array([5, 6]))]
      >>> found = analyse_traced(traced, labels)
      >>> [found.classes[atoms].tolist() for atoms in labels[0]], [found.classes[atoms].tolist() for atoms in labels[1]]
      ([[1, 2], [3]], [[4], [1, 2]])
    """
    inputs = [*variables, *([None] * len(traced.inputs))]
    updates = {out: traced.variables.index(path) for out, path in traced.updates.items()}
    return analyse(traced.jaxpr, traced.consts, inputs, updates, cutting=cutting)


def _inputs(labels: Labels, jaxpr: Any, inputs: Sequence[tuple[np.ndarray, ...] | None]) -> list[Axes]:
    """The labels of the inputs: an axis of length 1, having nothing to lose, is fixed."""
    ins = []
    for var, atoms in zip(jaxpr.invars, inputs):
        shape = lengths(var.aval.shape)
        kept = [(a if n > 1 and a.any() else labels.fixed(n), True) for a, n in zip(atoms or (), shape)]
        ins.append(labels.immovable(shape) if atoms is None else Axes.of(kept))
    return ins


def _analysis(flow: Flow, ins: Sequence[Axes], outs: Sequence[Axes], unknown: tuple[str, ...]) -> Analysis:
    labels = flow.labels
    free = [(a != FIXED) & (b != FIXED) for a, b in zip(labels.left, labels.right)]
    return Analysis(
        inputs=tuple(ins),
        outputs=tuple(outs),
        records=flow.records,
        classes=_components(labels, labels.left, labels.right),
        fixes=labels.fixes,
        unknown=unknown,
        joined=_components(labels, [a[f] for a, f in zip(labels.left, free)], [b[f] for b, f in zip(labels.right, free)]),
        constants=flow.constants,
    )


def _advance(labels: Labels, analysis: Analysis) -> dict[Any, dict[Any, str]] | None:
    """Mark the carriers that turned out fixed, the first in program order of each family; None if there are none.

    A failure may be the consequence of an earlier one, so the later ones of a family wait, but for those of the same kind
    as the first: a model of many blocks has the same reshape in each.
    """
    stuck = _stuck(analysis)
    pace: dict[int, Any] = {}
    failed = {key: dict(options) for key, options in labels.failed.items()}
    families: dict[Any, set[int]] = {}
    advanced: set[int] = set()
    for key, (flat, option, kind) in labels.carried.items():
        live = np.unique(flat[flat != FIXED])
        own = families[key] = set(np.unique(analysis.joined[live]).tolist())
        if not live.size or not stuck[analysis.classes[live]].all() or any(pace.get(f, kind) != kind for f in own):
            if own & advanced:
                failed.pop(key, None)
            continue
        pace |= dict.fromkeys(own, kind)
        advanced |= own
        why = "; ".join(analysis.reasons(live)) or "all channels would go together"
        failed.setdefault(key, {})[option] = why
    return failed if advanced else None


def _narrowed(labels: Labels, analysis: Analysis) -> dict[Any, dict[Any, str]] | None:
    """Leave each sum one axis whose removed indices are not 0, that which has most indices to lose; None if all have."""
    stuck = _stuck(analysis)
    failed = {key: dict(options) for key, options in labels.failed.items()}
    changed = False
    for key, axes in labels.sums.items():
        free = {axis: int(np.count_nonzero(~stuck[analysis.classes[atoms]])) for axis, atoms in axes.items()}
        best = max(free, key=lambda axis: free[axis], default=None)
        for axis in (a for a, n in free.items() if n and a != best):
            failed.setdefault(key, {})[axis] = "another axis of the sum"
            changed = True
    return failed if changed else None


def _stuck(analysis: Analysis) -> np.ndarray:
    """bool[classes]: fixed, or holding all indices of some variable's axis, so that it can never be removed."""
    stuck = np.zeros(len(analysis.classes), bool)
    stuck[FIXED] = True
    for axes in analysis.inputs:
        for atoms in axes.atoms:
            own = analysis.classes[atoms]
            if len(own) > 1 and (own == own[0]).all():
                stuck[own[0]] = True
    return stuck


def _components(labels: Labels, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(left) if left else np.zeros(0, np.int64)
    columns = np.concatenate(right) if right else np.zeros(0, np.int64)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(labels.count, labels.count))
    _, found = connected_components(graph, directed=False)
    # Class 0 is that of the atom FIXED.
    return np.where(found == found[FIXED], 0, np.where(found == 0, found[FIXED], found))
