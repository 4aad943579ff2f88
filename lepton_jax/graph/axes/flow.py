"""The forward pass that labels every axis of every value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_jax.graph.axes.collectives import put_together, taken_apart
from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.axes.rules import ALIKE, RULES
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.trace import CallPath, Equation


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """An operation with the labels of its operands and results."""

    eqn: Equation
    ins: tuple[Axes, ...]
    outs: tuple[Axes, ...]


class Flow(Forward[Axes]):
    """One forward pass over a graph, into its calls and loops.

    Args:
      labels: collects what the pass finds.
    """

    def __init__(self, labels: Labels):
        super().__init__()
        self.labels = labels
        self.records: dict[CallPath, Record] = {}

    def constant(self, value: Any) -> Axes:
        known = np.ndim(value) == 0 and isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"
        return self.labels.constant(np.shape(value), float(value) if known else None)

    def operation(self, eqn: Equation, given: list[Axes]) -> list[Axes]:
        rule = RULES.get(eqn.primitive)
        outs = self._unknown(eqn, given) if rule is None else rule(self.labels, eqn, given)
        if eqn.primitive not in ALIKE:
            outs = [out.forgetting() for out in outs]
        self.records[eqn.path] = Record(eqn=eqn, ins=tuple(given), outs=tuple(outs))
        return outs

    def _unknown(self, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
        if any(not self.labels.is_fixed(atoms) for value in ins for atoms in value.atoms):
            self.labels.unknown[eqn.primitive] = None
        self.labels.fix_all(ins, f"{eqn.primitive}, which has no rule")
        return [self.labels.immovable(lengths(aval.shape)) for aval in eqn.out_avals]

    def call(self, eqn: Equation, given: list[Axes]) -> list[Axes]:
        """Go into a call or loop; the results of several branches are unified."""
        if eqn.is_plain_call:
            outs = self.inside(eqn, eqn.bodies[0], given)
            self.records[eqn.path] = Record(eqn=eqn, ins=tuple(given), outs=tuple(outs))
            return outs
        given = [value.forgetting() for value in given]
        results: dict[int, Axes] = {}
        settled: Sequence[Axes] = given
        # The condition of a while loop comes first but sees what the body settles.
        for body in sorted(eqn.bodies, key=lambda b: not b.carry):
            entering = [self._slice(settled[i], scanned=j in body.scanned_in) for j, i in enumerate(body.operands)]
            if body.parts_in:
                entering = [taken_apart(self.labels, value, parts) for value, parts in zip(entering, body.parts_in)]
            outs, entering = self._settle(eqn, body, entering)
            if body.carry:
                settled = self._with_carries(eqn, body, settled, entering)
            if body.parts_out:
                outs = [put_together(self.labels, value, parts) for value, parts in zip(outs, body.parts_out)]
            if not body.results:
                self.labels.fix_all(outs, f"the condition of {eqn.primitive}")
            for j, (result, out) in enumerate(zip(body.results, outs)):
                whole = self._stack(eqn, result, out) if j in body.scanned_out else out
                results[result] = self._join(eqn, results[result], whole) if result in results else whole
        outs = [results[i].forgetting() for i in range(len(eqn.outvars))]
        self.records[eqn.path] = Record(eqn=eqn, ins=tuple(given), outs=tuple(outs))
        return outs

    def _slice(self, value: Axes, *, scanned: bool) -> Axes:
        if not scanned:
            return value
        self.labels.fix(value.atoms[0], "the scanned axis")
        return value.without([0])

    def _stack(self, eqn: Equation, result: int, out: Axes) -> Axes:
        [length, *_] = lengths(eqn.out_avals[result].shape)
        return Axes.of([self.labels.still(length), *out.parts])

    def _settle(self, eqn: Equation, body: Any, given: list[Axes]) -> tuple[list[Axes], list[Axes]]:
        """Run a body until what is known to be 0 of its carries holds from step to step."""
        for _, j in body.carry:
            given[j] = replace(given[j], uniform=None)
        while True:
            outs = self.inside(eqn, body, given)
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
