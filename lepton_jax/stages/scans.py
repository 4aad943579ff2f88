"""Scans over layers as runs of their steps, so that a model can be cut between layers that a scan repeats."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax

from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.primitives import PLAIN_CALLS
from lepton_jax.graph.trace import Equation, Traced

Steps = tuple[tuple[int, ...], ...]
"""For each scan that can be split, in program order, before which of its steps it is; steps count in the order they run."""
_RUN = re.compile(r"(?:^|/)scan_(\d+)_from_step_(\d+)(?:/|$)")


class Runs(Interpreter):
    """Evaluates a graph with scans over weights as runs of steps; calls are inlined.

    Such a scan has one operand at least that it takes apart along its first axis and that comes from variables alone: a stack
    of layers. What it does in each step, and in which order, stays as it was. A scan within another loop, within a
    rematerialised function or one with its own derivative rule stays whole, and so does one that goes through inputs alone.

    Args:
      traced: the graph.
      steps: where to split the scans; None: before every step.

    Attributes:
      lengths: how many steps each scan that can be split has; known after a run.
    """

    def __init__(self, traced: Traced, steps: Steps | None):
        super().__init__(traced)
        self._steps, self._origins, self._inside = steps, origins(traced), 0
        self.lengths: list[int] = []

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        """Take scans over weights into runs."""
        if eqn.primitive != "scan" or self._inside or not self._over_weights(eqn):
            return None
        number, length = len(self.lengths), eqn.params["length"]
        self.lengths.append(length)
        if self._steps is None:
            together = min(eqn.params["unroll"], length)
            cuts: Sequence[int] = range(together, length, together)
        else:
            cuts = self._steps[number] if number < len(self._steps) else ()
        return self._run(eqn, values, number, [0, *cuts, length]) if cuts else None

    def default(self, eqn: Equation, values: Sequence[Any]) -> list[Any]:
        """Evaluate an operation, and note whether it is a loop or the like."""
        if not eqn.bodies or eqn.primitive in PLAIN_CALLS:
            return super().default(eqn, values)
        with self._within():
            return super().default(eqn, values)

    @contextmanager
    def _within(self) -> Iterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _over_weights(self, eqn: Equation) -> bool:
        consts, carry = _compat.scan_counts(eqn.raw)
        found = operand_origins(self._origins, eqn)[consts + carry :]
        return eqn.params["length"] > 1 and any(found) and not getattr(eqn.raw, "effects", None)

    def _run(self, eqn: Equation, values: Sequence[Any], number: int, ends: Sequence[int]) -> list[Any]:
        n_consts, n_carry = _compat.scan_counts(eqn.raw)
        length, backwards = eqn.params["length"], eqn.params["reverse"]
        consts, carry, stacked = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
        pieces = []
        for begin, end in itertools.pairwise(ends):
            low, high = (length - end, length - begin) if backwards else (begin, end)
            short = {"length": end - begin, "unroll": min(eqn.params["unroll"], end - begin)}
            one = replace(eqn, raw=_compat.with_params(eqn.raw, **short))
            with jax.named_scope(f"scan_{number}_from_step_{begin}"), self._within():
                rows = [jax.lax.slice_in_dim(value, low, high) for value in stacked]
                outs = self._scan(one, [*consts, *carry, *rows])
            carry = outs[:n_carry]
            pieces.append(outs[n_carry:])
        ordered = pieces[::-1] if backwards else pieces
        with jax.named_scope(f"scan_{number}_from_step_{length}"):
            return [*carry, *(jax.lax.concatenate(list(parts), 0) for parts in zip(*ordered))]


def run_of(scope: str) -> tuple[int, int] | None:
    """Which scan an operation is a run of, by its scope, and from which step; None if it is none.

    Example:
      >>> run_of("Net/scan_0_from_step_2"), run_of("Net/Dense_0")
      ((0, 2), None)
    """
    found = _RUN.search(scope)
    return None if found is None else (int(found[1]), int(found[2]))
