"""How steps reach the device: a call for each, or many in one program; for one run, or for several that are stacked.

Several runs are faster one after another on CPU, since under `vmap` a condition that differs between them becomes a choice
between two results, both computed, so that masks would be made at every step. Inside one program their loops cost no dispatch;
but convolutions inside a loop are slow there, and such runs step in turn, a call each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array, PyTree
from lepton_jax.training.source import StackedSource
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import TrainStep, make_scan_steps

Losses = dict[str, Any]
"""Metrics by name, as arrays on the device or lists of them, ``[runs, steps]`` when flattened."""


class InTurn:
    """Runs, or a single one, that take their steps in turn by calls of their own.

    Args:
      runs: single states; donated.
      step: from `make_train_step`.
      sources: ``batch_at(step)`` of each.
      scan: steps a call where `advance` is asked for that many.
    """

    def __init__(
        self, runs: Sequence[TrainState], step: TrainStep, sources: Sequence[Callable[[int], Any]], scan: int = 1
    ) -> None:
        self.states, self._step, self._sources = list(runs), step, sources
        self._scanned = make_scan_steps(step, scan) if scan > 1 else step

    def advance(self, first: int, count: int) -> Losses:
        """Dispatch `count` steps of all runs: one, or as many as are scanned."""
        taken = [self._advance(run, batch_at, first, count) for run, batch_at in zip(self.states, self._sources, strict=True)]
        self.states = [run for run, _ in taken]
        return {name: [metrics[name] for _, metrics in taken] for name in taken[0][1]}

    def _advance(self, run: TrainState, batch_at: Callable[[int], Any], first: int, count: int) -> tuple[TrainState, Losses]:
        if count == 1:
            return self._step(run, batch_at(first))
        batches = [batch_at(first + i) for i in range(count)]
        return self._scanned(run, jax.tree.map(lambda *leaves: np.stack(leaves), *batches))


class AtOnce:
    """Stacked runs whose steps are taken in one program.

    Args:
      state: stacked; donated.
      step: from `make_train_step`; it must read all that differs between runs from the state.
      source: their batches.
      side_by_side: runs under `vmap` at a time.
    """

    def __init__(self, state: TrainState, step: TrainStep, source: StackedSource, side_by_side: int) -> None:
        self.states, self._source, self._program = [state], source, (step, source.take, side_by_side)

    def advance(self, first: int, count: int) -> Losses:
        """Dispatch `count` steps of all runs."""
        source, orders = self._source, jnp.asarray(self._source.orders(first, count))
        state, losses = _scanned(self._program, self.states[0], source.held, source.own, orders)
        self.states = [state]
        return {"loss": losses}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)  # at module level: compiled once for all calls of a step
def _scanned(
    program: tuple[TrainStep, Any, int], state: TrainState, held: PyTree, own: PyTree, orders: Array
) -> tuple[TrainState, Array]:
    """Take the steps of ``orders[runs, steps, ...]``; losses ``[runs, steps]``."""
    step, take, side_by_side = program

    def one(run: tuple[tuple[Any, ...], PyTree, Array]) -> tuple[tuple[Any, ...], Array]:
        rest, mine, order = run

        def move(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
            state, metrics = step(state, take(held, mine, rows))
            return state, metrics["loss"]

        moved, losses = jax.lax.scan(move, TrainState(state.step, *rest), order)
        return moved[1:], losses

    moved, losses = jax.lax.map(one, (state[1:], own, orders), batch_size=side_by_side if side_by_side > 1 else None)
    return TrainState(state.step + orders.shape[1], *moved), losses
