"""The analysis: one forward pass over a graph that labels every axis of every value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lepton_jax.graph import _compat
from lepton_jax.graph.axes.labels import FIXED, Axes, Labels
from lepton_jax.graph.axes.rules import RULES
from lepton_jax.graph.trace import CallPath, Equation, Traced, join

_MAX_PASSES = 64
"""A reshape has a handful of carriers, and like ones advance together. An analysis stopped early fixes too much, no less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """An operation with the labels of its operands and results."""

    eqn: Equation
    ins: tuple[Axes, ...]
    outs: tuple[Axes, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """The labels of all values of a graph, and the classes that they fall into.

    Two indices are in one class if and only if they are removed together; class 0 is that of fixed indices.
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


def analyse(
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[tuple[np.ndarray, ...] | None],
    updates: Mapping[int, int] | None = None,
    *,
    free_outputs: bool = False,
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
      path: where the jaxpr stands, if it is an inner one.

    Returns:
      The labels, classes and reasons.
    """
    failed: Mapping[Any, Mapping[Any, str]] = {}
    unknown: dict[str, None] = {}
    for _ in range(_MAX_PASSES):
        flow = _Flow(Labels(failed))
        analysis = flow.run(jaxpr, consts, inputs, updates or {}, free_outputs, path)
        unknown |= flow.labels.unknown
        advanced = _advance(flow.labels, analysis)
        if advanced is None:
            break
        failed = advanced
    return replace(analysis, unknown=tuple(unknown))


def analyse_traced(traced: Traced, variables: Sequence[tuple[np.ndarray, ...]]) -> Analysis:
    """Label a traced function whose variables' axes have the given labels; inputs and other outputs are fixed."""
    inputs = [*variables, *([None] * len(traced.inputs))]
    updates = {out: traced.variables.index(path) for out, path in traced.updates.items()}
    return analyse(traced.jaxpr, traced.consts, inputs, updates)


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


class _Flow:
    """One forward pass."""

    def __init__(self, labels: Labels):
        self.labels = labels
        self.records: dict[CallPath, Record] = {}
        self.constants: dict[CallPath, tuple[Axes, ...]] = {}

    def run(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[tuple[np.ndarray, ...] | None],
        updates: Mapping[int, int],
        free_outputs: bool,
        path: CallPath,
    ) -> Analysis:
        labels = self.labels
        labels.count = 1 + max((int(a.max()) for atoms in inputs for a in atoms or () if a.size), default=0)
        ins = []
        for var, atoms in zip(jaxpr.invars, inputs):
            shape = var.aval.shape
            if atoms is None:
                ins.append(labels.immovable(shape))
            else:
                kept = tuple(a if n > 1 and a.any() else labels.fixed(n) for a, n in zip(atoms, shape))
                ins.append(Axes(kept, (True,) * len(shape)))
        outs = self.body(jaxpr, consts, ins, path, "", 1)
        for index, out in enumerate(outs):
            if index in updates:
                for new, old in zip(out.atoms, ins[updates[index]].atoms):
                    labels.pair(new, old, "updated state")
            elif not free_outputs:
                labels.fix_all([out], "an output")
        classes = _components(labels, labels.left, labels.right)
        free = [(a != FIXED) & (b != FIXED) for a, b in zip(labels.left, labels.right)]
        joined = _components(labels, [a[f] for a, f in zip(labels.left, free)], [b[f] for b, f in zip(labels.right, free)])
        return Analysis(
            inputs=tuple(ins),
            outputs=tuple(outs),
            records=self.records,
            classes=classes,
            fixes=labels.fixes,
            unknown=tuple(labels.unknown),
            joined=joined,
            constants=self.constants,
        )

    def body(
        self, jaxpr: Any, consts: Sequence[Any], ins: Sequence[Axes], path: CallPath, scope: str, times: int | None
    ) -> list[Axes]:
        env: dict[Any, Axes] = dict(zip(jaxpr.invars, ins))
        self.constants[path] = tuple(map(self._constant, consts))
        env.update(zip(jaxpr.constvars, self.constants[path]))
        for index, raw in enumerate(jaxpr.eqns):
            eqn = Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)), times=times)
            operands = [self._read(env, v) for v in raw.invars]
            outs = self.equation(eqn, operands)
            self.records[eqn.path] = Record(eqn=eqn, ins=tuple(operands), outs=tuple(outs))
            env.update(zip(raw.outvars, outs))
        return [self._read(env, v) for v in jaxpr.outvars]

    def _read(self, env: Mapping[Any, Axes], atom: Any) -> Axes:
        return self._constant(_compat.literal_value(atom)) if _compat.is_literal(atom) else env[atom]

    def _constant(self, value: Any) -> Axes:
        known = np.ndim(value) == 0 and isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"
        return self.labels.constant(np.shape(value), float(value) if known else None)

    def equation(self, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
        if eqn.bodies:
            return self._call(eqn, ins)
        rule = RULES.get(eqn.primitive)
        if rule is not None:
            return rule(self.labels, eqn, ins)
        if any(not self.labels.is_fixed(atoms) for value in ins for atoms in value.atoms):
            self.labels.unknown[eqn.primitive] = None
        self.labels.fix_all(ins, f"{eqn.primitive}, which has no rule")
        return [self.labels.immovable(aval.shape) for aval in eqn.out_avals]

    def _call(self, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
        """Go into a call or loop; the results of several branches are unified."""
        results: dict[int, Axes] = {}
        settled: Sequence[Axes] = ins
        # The condition of a while loop comes first but sees what the body settles.
        for body in sorted(eqn.bodies, key=lambda b: not b.carry):
            given = [self._slice(settled[i], scanned=j in body.scanned_in) for j, i in enumerate(body.operands)]
            outs, given = self._settle(eqn, body, given)
            if body.carry:
                settled = self._with_carries(eqn, body, settled, given)
            if not body.results:
                self.labels.fix_all(outs, f"the condition of {eqn.primitive}")
            for j, (result, out) in enumerate(zip(body.results, outs)):
                whole = self._stack(eqn, result, out) if j in body.scanned_out else out
                results[result] = self._join(eqn, results[result], whole) if result in results else whole
        return [results[i] for i in range(len(eqn.outvars))]

    def _slice(self, value: Axes, *, scanned: bool) -> Axes:
        if not scanned:
            return value
        self.labels.fix(value.atoms[0], "the scanned axis")
        return Axes(value.atoms[1:], value.zero[1:], value.uniform)

    def _stack(self, eqn: Equation, result: int, out: Axes) -> Axes:
        length = eqn.out_avals[result].shape[0]
        return Axes((self.labels.fixed(length), *out.atoms), (True, *out.zero))

    def _settle(self, eqn: Equation, body: Any, given: list[Axes]) -> tuple[list[Axes], list[Axes]]:
        """Run a body until what is known to be 0 of its carries holds from step to step."""
        for _, j in body.carry:
            given[j] = replace(given[j], uniform=None)
        times = None if eqn.times is None or body.times is None else eqn.times * body.times
        while True:
            outs = self.body(body.jaxpr, body.consts, given, (*eqn.path, body.label), eqn.scope, times)
            changed = False
            for i, j in body.carry:
                zero = tuple(a and b for a, b in zip(outs[i].zero, given[j].zero))
                changed |= zero != given[j].zero
                given[j] = replace(given[j], zero=zero)
            if not changed:
                break
        for i, j in body.carry:
            for new, old in zip(outs[i].atoms, given[j].atoms):
                self.labels.pair(new, old, f"the carry of {eqn.primitive}")
            outs[i] = given[j]
        return outs, given

    def _with_carries(self, eqn: Equation, body: Any, ins: Sequence[Axes], given: Sequence[Axes]) -> list[Axes]:
        settled = list(ins)
        for _, j in body.carry:
            settled[body.operands[j]] = given[j]
        return settled

    def _join(self, eqn: Equation, one: Axes, other: Axes) -> Axes:
        for a, b in zip(one.atoms, other.atoms):
            self.labels.pair(a, b, eqn.primitive)
        uniform = one.uniform if one.uniform == other.uniform else None
        return Axes(one.atoms, tuple(a and b for a, b in zip(one.zero, other.zero)), uniform)


def _components(labels: Labels, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(left) if left else np.zeros(0, np.int64)
    columns = np.concatenate(right) if right else np.zeros(0, np.int64)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(labels.count, labels.count))
    _, found = connected_components(graph, directed=False)
    # Class 0 is that of the atom FIXED.
    return np.where(found == found[FIXED], 0, np.where(found == 0, found[FIXED], found))
