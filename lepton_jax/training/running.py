"""A run in progress: its state, the steps in flight, its last good state, and the account of a failure."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from lepton_jax.pruning.state import check_scores
from lepton_jax.training.arrays import from_arrays, not_finite, to_arrays
from lepton_jax.training.checkpoint import Checkpoints
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import Metrics, TrainStep, make_scan_steps

IN_FLIGHT = 8
"""Dispatches that may wait on the device: more would only fill its memory with their batches."""


class Run:
    """Take steps without waiting for them, and look at their losses when asked.

    Args:
      state: after `done` steps.
      step: from `make_train_step`.
      batch_at: the batch of a step.
      scan: steps a dispatch where `advance` is asked for that many.
      checkpoints: where to save.
      window: metrics of the steps since the last row, from the checkpoint.
    """

    def __init__(
        self,
        state: TrainState,
        step: TrainStep,
        batch_at: Callable[[int], Any],
        scan: int,
        checkpoints: Checkpoints | None,
        window: list[dict[str, float]],
    ) -> None:
        self.state = state
        self.done = int(state.step)
        self._step, self._batch_at, self._checkpoints, self._window = step, batch_at, checkpoints, window
        self._scanned = make_scan_steps(step, scan) if scan > 1 else step
        self._pending: list[Metrics] = []
        # On the host, so that a failure can be traced from here without the device holding two states.
        self._good, self._good_step = to_arrays(state), self.done

    def advance(self, count: int) -> None:
        """Dispatch `count` steps: one, or as many as are scanned."""
        if count == 1:
            self.state, metrics = self._step(self.state, self._batch_at(self.done))
        else:
            batches = [self._batch_at(self.done + i) for i in range(count)]
            self.state, metrics = self._scanned(self.state, jax.tree.map(lambda *leaves: np.stack(leaves), *batches))
        self._pending.append(metrics)
        self.done += count
        if len(self._pending) > IN_FLIGHT:
            self._pending[-IN_FLIGHT]["loss"].block_until_ready()

    def take_means(self) -> dict[str, float]:
        """Return the mean of each metric over the steps since the last call.

        Raises:
          FloatingPointError: if a loss was not finite.
          ValueError: if pruning met scores that were not finite.
        """
        self._look()
        rows, self._window = self._window, []
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def save(self) -> None:
        """Note the state as good, and save it if there is where.

        Raises:
          FloatingPointError: if a loss, a parameter or the model's state is not finite; nothing is saved.
          ValueError: if pruning met scores that were not finite.
        """
        self._look()
        if not_finite((self.state.params, self.state.model_state)):
            self._fail(self.done)
        self._good, self._good_step = to_arrays(self.state), self.done
        if self._checkpoints is not None:
            self._checkpoints.save(self.done, self.state, {"window": self._window})

    def interrupt(self) -> NoReturn:
        """Save, and raise KeyboardInterrupt with a message that says where."""
        if self._checkpoints is None:
            raise KeyboardInterrupt(f"interrupted after step {self.done}; without checkpoints the run cannot be resumed.")
        self.save()
        self._checkpoints.wait()
        raise KeyboardInterrupt(
            f"interrupted after step {self.done}; saved in {self._checkpoints.directory}: resume to go on to the same result."
        )

    def _look(self) -> None:
        """Fetch the metrics of the steps in flight."""
        rows: list[dict[str, float]] = []
        for fetched in jax.device_get(self._pending):
            columns = {name: np.ravel(values).tolist() for name, values in fetched.items()}
            rows.extend(dict(zip(columns, row)) for row in zip(*columns.values()))
        self._pending = []
        first = self.done - len(rows)
        self._window += rows
        for i, row in enumerate(rows):
            if not np.isfinite(row["loss"]):
                self._fail(first + i)
        check_scores(self.state.tstate)

    def _fail(self, seen_at: int) -> NoReturn:
        """Go over the steps since the last good state, one by one, to find the one that failed and what it left behind."""
        state = from_arrays(self._good, self.state)
        for number in range(self._good_step, self.done):
            batch = self._batch_at(number)
            state, metrics = self._step(state, batch)
            leaves = not_finite({"params": state.params, **state.model_state})
            if leaves or not np.isfinite(metrics["loss"]):
                raise FloatingPointError(self._account(number, float(metrics["loss"]), leaves, not_finite(batch)))
        leaves = not_finite({"params": self.state.params, **self.state.model_state})
        account = self._account(seen_at, float("nan"), leaves, [])
        raise FloatingPointError(f"{account} Going over the steps again did not repeat it.")

    def _account(self, number: int, loss: float, leaves: list[str], inputs: list[str]) -> str:
        shown = ", ".join(leaves[:8]) + (f" and {len(leaves) - 8} more" if len(leaves) > 8 else "")
        cause = f"the batch of this step is not finite at {', '.join(inputs)}. " if inputs else ""
        kept = "no checkpoint was asked for"
        if self._checkpoints is not None:
            self._checkpoints.wait()
            latest = self._checkpoints.latest_step
            kept = "there is no checkpoint yet" if latest is None else f"the checkpoint of step {latest} is good"
        return (
            f"training must stay finite: step {number} gave loss {loss}, and left {shown or 'no parameter'} not finite. {cause}"
            f"{kept}. Lower the learning rate, clip the gradients, or look at that step's batch."
        )
