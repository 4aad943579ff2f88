"""Training of students, with their teachers' answers in memory."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import members
from experiments.common.training_settings import Training
from experiments.common.unfinished import History
from lepton_jax.core.typing import Array
from lepton_jax.data import Split
from lepton_jax.distillation import Outputs, TaughtBatch
from lepton_jax.training import TrainState, TrainStep


def train(
    config: Training,
    split: Split,
    step: TrainStep,
    state: TrainState,
    seeds: Sequence[int],
    answers: Outputs,
    *,
    epochs: int,
    first_epoch: int = 0,
    name: str = "train",
    history: History | None = None,
    run_dir: Path | None = None,
) -> TrainState:
    """Train all members for some epochs; as `members.train`, with every epoch one program.

    Args:
      answers: of every member's teacher for all examples, ``[members, N, ...]``.
      config, split, step, state, seeds, epochs, first_epoch, name, history, run_dir: as for `members.train`.

    Raises:
      FloatingPointError: if a member's loss is not finite.
    """
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)

    def advance(state: TrainState, orders: np.ndarray) -> tuple[TrainState, Array]:
        return _epoch(step, config.vmap, state, answers, images, labels, jnp.asarray(orders))

    those = range(first_epoch, first_epoch + epochs)
    return members.run_epochs(config, split, advance, state, seeds, those, name, history, run_dir)


def batch_of(images: Array, labels: Array, answers: Outputs, rows: Array) -> TaughtBatch:
    """Return the examples of some rows, with what their teacher answers."""
    return TaughtBatch(images[rows], labels[rows], jnp.ones(rows.shape, bool), jax.tree.map(lambda some: some[rows], answers))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _epoch(
    step: TrainStep, side_by_side: int, state: TrainState, answers: Outputs, images: Array, labels: Array, orders: Array
) -> tuple[TrainState, Array]:
    """Take the steps of ``orders[members, steps, batch]``, all in one program; losses ``[members, steps]``."""

    def one(run: tuple[tuple[Any, ...], Outputs, Array]) -> tuple[tuple[Any, ...], Array]:
        rest, mine, places = run

        def take(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
            state, metrics = step(state, batch_of(images, labels, mine, rows))
            return state, metrics["loss"]

        moved, losses = jax.lax.scan(take, TrainState(state.step, *rest), places)
        return moved[1:], losses

    moved, losses = jax.lax.map(one, (state[1:], answers, orders), batch_size=side_by_side if side_by_side > 1 else None)
    return TrainState(state.step + orders.shape[1], *moved), losses
