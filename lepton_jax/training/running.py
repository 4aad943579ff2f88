"""A run in progress, or several that are stacked: the steps in flight, the last good state, and the account of a failure."""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from lepton_jax.core.finite import not_finite
from lepton_jax.core.transform import check_state
from lepton_jax.training import stacked
from lepton_jax.training.arrays import from_arrays, to_arrays
from lepton_jax.training.checkpoint import Checkpoints
from lepton_jax.training.dispatch import AtOnce, Batches, InTurn, alone
from lepton_jax.training.interrupt import raise_interrupt
from lepton_jax.training.source import StackedSource
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import TrainStep

IN_FLIGHT = 8
"""Dispatches that may wait on the device: more would only fill its memory with their batches."""


class Run:
    """Take steps without waiting for them, and look at their losses when asked.

    Args:
      state: after `done` steps; stacked, if the batches come from a `StackedSource`.
      step: from `make_train_step`.
      batch_at: the batch of a step, or a `StackedSource`.
      scan: steps a dispatch where `advance` is asked for that many.
      side_by_side: stacked runs under `vmap` at a time, where steps are scanned.
      checkpoints: where to save.
      extra: what a checkpoint keeps besides: "window", the metrics of the steps since the last row, and "history".
      name: begins the account of a failure.
    """

    def __init__(
        self,
        state: TrainState,
        step: TrainStep,
        batch_at: Batches,
        *,
        scan: int,
        side_by_side: int,
        checkpoints: Checkpoints | None,
        extra: dict[str, list[dict[str, Any]]],
        name: str,
    ) -> None:
        self.done = int(state.step)
        self._step, self._batch_at, self._checkpoints, self._extra, self._name = step, batch_at, checkpoints, extra, name
        # On the host, so that a failure can be traced from here without the device holding two states.
        self._good, self._good_step = to_arrays(state), self.done
        self._count = len(batch_at.seeds) if isinstance(batch_at, StackedSource) else 1
        self._ways: InTurn | AtOnce
        if isinstance(batch_at, StackedSource) and scan > 1:
            self._ways = AtOnce(state, step, batch_at, side_by_side)
        else:
            self._ways = InTurn(state, step, batch_at, scan)
        self._pending: list[Any] = []

    @property
    def state(self) -> TrainState:
        """After `done` steps; stacked, if there are several runs."""
        return self._ways.state

    def advance(self, count: int) -> None:
        """Dispatch `count` steps: one, or as many as are scanned."""
        self._pending.append(self._ways.advance(self.done, count))
        self.done += count
        if len(self._pending) > IN_FLIGHT:
            jax.block_until_ready(self._pending[-IN_FLIGHT])

    def take_means(self) -> dict[str, float]:
        """Return the mean of each metric over the runs and the steps since the last call.

        Raises:
          FloatingPointError: if a loss was not finite.
          ValueError: if pruning met scores that were not finite.
        """
        self._look()
        rows, self._extra["window"] = self._extra["window"], []
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def save(self) -> None:
        """Note the state as good, and save it if there is where.

        Raises:
          FloatingPointError: if a loss, a parameter or the model's state is not finite; nothing is saved.
          ValueError: if pruning met scores that were not finite.
        """
        self._look()
        state = self.state
        if not_finite((state.params, state.model_state)):
            self._fail(self.done, ())
        self._good, self._good_step = to_arrays(state), self.done
        if self._checkpoints is not None:
            self._checkpoints.save(self.done, state, self._extra)

    def interrupt(self, number: int) -> NoReturn:
        """Save, and raise what the signal raises, with a message that says where."""
        after = f"interrupted after step {self.done}"
        if self._checkpoints is None:
            raise_interrupt(number, f"{after}; without checkpoints the run cannot be resumed.")
        self.save()
        self._checkpoints.wait()
        raise_interrupt(number, f"{after}; saved in {self._checkpoints.directory}: resume to go on to the same result.")

    def _look(self) -> None:
        """Fetch the metrics of the steps in flight."""
        pending, self._pending = jax.device_get(self._pending), []
        by_step: list[dict[str, Any]] = []  # of all runs
        for fetched in pending:
            columns = {name: np.reshape(values, (self._count, -1)).T for name, values in fetched.items()}
            by_step.extend(dict(zip(columns, row)) for row in zip(*columns.values()))
        first = self.done - len(by_step)
        self._extra["window"] += [{name: float(values.mean()) for name, values in row.items()} for row in by_step]
        for i, row in enumerate(by_step):
            if not np.isfinite(row["loss"]).all():
                self._fail(first + i, np.flatnonzero(~np.isfinite(row["loss"])).tolist())
        for state in self._ways.states:
            check_state(state.tstate)

    def _fail(self, seen_at: int, bad: Sequence[int]) -> NoReturn:
        """Go over the steps since the last good state, one by one, to find the one that failed and what it left behind."""
        last, source = self.state, self._batch_at if isinstance(self._batch_at, StackedSource) else None
        good = from_arrays(self._good, last)
        for run in bad or range(self._count):
            state, batch_at = good if source is None else stacked.member(good, run), alone(self._batch_at, run)
            where = "" if source is None else f" of member {run} (seed {source.seeds[run]})"
            for number in range(self._good_step, self.done):
                batch = batch_at(number)
                state, metrics = self._step(state, batch)
                leaves = _bad_leaves(state)
                if leaves or not np.isfinite(metrics["loss"]):
                    raise FloatingPointError(self._account(number, where, float(metrics["loss"]), leaves, not_finite(batch)))
        account = self._account(seen_at, "", float("nan"), _bad_leaves(last), [])
        raise FloatingPointError(f"{account} Going over the steps again did not repeat it.")

    def _account(self, number: int, where: str, loss: float, leaves: list[str], inputs: list[str]) -> str:
        shown = ", ".join(leaves[:8]) + (f" and {len(leaves) - 8} more" if len(leaves) > 8 else "")
        cause = f"the batch of this step is not finite at {', '.join(inputs)}. " if inputs else ""
        kept = "no checkpoint was asked for"
        if self._checkpoints is not None:
            self._checkpoints.wait()
            latest = self._checkpoints.latest_step
            kept = "there is no checkpoint yet" if latest is None else f"the checkpoint of step {latest} is good"
        return (
            f"{self._name}: training must stay finite: step {number}{where} gave loss {loss}, and left "
            f"{shown or 'no parameter'} not finite. {cause}{kept}. Lower the learning rate, clip the gradients, or look at "
            "that step's batch."
        )


def _bad_leaves(state: TrainState) -> list[str]:
    return not_finite({"params": state.params, **state.model_state})
