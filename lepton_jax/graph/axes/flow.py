"""The forward pass that labels every axis of every value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.axes.rules import RULES
from lepton_jax.graph.trace import CallPath, Equation, join


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """An operation with the labels of its operands and results."""

    eqn: Equation
    ins: tuple[Axes, ...]
    outs: tuple[Axes, ...]


class Flow:
    """One forward pass over a graph, into its calls and loops.

    Args:
      labels: collects what the pass finds.
    """

    def __init__(self, labels: Labels):
        self.labels = labels
        self.records: dict[CallPath, Record] = {}
        self.constants: dict[CallPath, tuple[Axes, ...]] = {}

    def body(
        self, jaxpr: Any, consts: Sequence[Any], ins: Sequence[Axes], path: CallPath, scope: str, times: int | None
    ) -> list[Axes]:
        """Label the values of a jaxpr, found at `path`, given the labels of its inputs; return those of its outputs."""
        env: dict[Any, Axes] = dict(zip(jaxpr.invars, ins))
        self.constants[path] = tuple(map(self._constant, consts))
        env.update(zip(jaxpr.constvars, self.constants[path]))
        for index, raw in enumerate(jaxpr.eqns):
            eqn = Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)), times=times)
            operands = [self._read(env, v) for v in raw.invars]
            outs = self._equation(eqn, operands)
            self.records[eqn.path] = Record(eqn=eqn, ins=tuple(operands), outs=tuple(outs))
            env.update(zip(raw.outvars, outs))
        return [self._read(env, v) for v in jaxpr.outvars]

    def _read(self, env: Mapping[Any, Axes], atom: Any) -> Axes:
        return self._constant(_compat.literal_value(atom)) if _compat.is_literal(atom) else env[atom]

    def _constant(self, value: Any) -> Axes:
        known = np.ndim(value) == 0 and isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"
        return self.labels.constant(np.shape(value), float(value) if known else None)

    def _equation(self, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
        if eqn.bodies:
            return self._call(eqn, ins)
        rule = RULES.get(eqn.primitive)
        if rule is not None:
            return rule(self.labels, eqn, ins)
        if any(not self.labels.is_fixed(atoms) for value in ins for atoms in value.atoms):
            self.labels.unknown[eqn.primitive] = None
        self.labels.fix_all(ins, f"{eqn.primitive}, which has no rule")
        return [self.labels.immovable(lengths(aval.shape)) for aval in eqn.out_avals]

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
        [length, *_] = lengths(eqn.out_avals[result].shape)
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
