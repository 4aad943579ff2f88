"""How steps reach the device: a call for each, or many in one program; for one run, or for several that are stacked.

Several runs are faster one after another on CPU, since under `vmap` a condition that differs between them becomes a choice
between two results, both computed, so that masks would be made at every step. Inside one program their loops cost no dispatch;
but convolutions inside a loop are slow there, and such runs step in turn, a call each.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.typing import Array, PyTree
from lepton_jax.training import stacked
from lepton_jax.training.source import StackedSource
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import TrainStep, make_scan_steps

Batches = Callable[[int], Any] | StackedSource
Losses = dict[str, Any]
"""Metrics by name, as arrays on the device or lists of them, ``[runs, steps]`` when flattened."""


def alone(batch_at: Batches, run: int) -> Callable[[int], Any]:
    """Return the batches of one run by step."""
    return batch_at.batch_at(run) if isinstance(batch_at, StackedSource) else batch_at


class InTurn:
    """A single run, or stacked ones that take their steps in turn by calls of their own.

    Args:
      state: donated; stacked, if the batches come from a `StackedSource`.
      step: from `make_train_step`.
      batch_at: the batch of a step, or a `StackedSource`.
      scan: steps a call where `advance` is asked for that many; of a single run.
    """

    def __init__(self, state: TrainState, step: TrainStep, batch_at: Batches, scan: int) -> None:
        self._step, self._scanned = step, make_scan_steps(step, scan) if scan > 1 else step
        self._stacked = isinstance(batch_at, StackedSource)
        self.states = stacked.apart(state) if self._stacked else [state]
        self._sources = [alone(batch_at, run) for run in range(len(self.states))]

    @property
    def state(self) -> TrainState:
        """Of all runs."""
        return stacked.together(self.states) if self._stacked else self.states[0]

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
        self.state, self._source, self._program = state, source, (step, source.take, side_by_side)

    @property
    def states(self) -> list[TrainState]:
        """The stack, of which nothing is known apart."""
        return [self.state]

    def advance(self, first: int, count: int) -> Losses:
        """Dispatch `count` steps of all runs."""
        source, orders = self._source, jnp.asarray(self._source.orders(first, count))
        self.state, losses = _scanned(self._program, self.state, source.held, source.own, orders)
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
