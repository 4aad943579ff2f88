"""Epochs of students, with their teachers' answers in memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.distillation import Outputs, TaughtBatch
from lepton_jax.training import TrainState, TrainStep
from lepton_jax.typing import Array


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def epoch(
    step: TrainStep, side_by_side: int, state: TrainState, answers: Outputs, images: Array, labels: Array, orders: Array
) -> tuple[TrainState, Array]:
    """Take the steps of ``orders[seeds, steps, batch]``, all in one program; losses ``[seeds, steps]``."""

    def one(run: tuple[tuple[Any, ...], Outputs, Array]) -> tuple[tuple[Any, ...], Array]:
        rest, mine, places = run

        def take(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
            state, metrics = step(state, batch_of(images, labels, mine, rows))
            return state, metrics["loss"]

        moved, losses = jax.lax.scan(take, TrainState(state.step, *rest), places)
        return moved[1:], losses

    moved, losses = jax.lax.map(one, (state[1:], answers, orders), batch_size=side_by_side if side_by_side > 1 else None)
    return TrainState(state.step + orders.shape[1], *moved), losses


def batch_of(images: Array, labels: Array, answers: Outputs, rows: Array) -> TaughtBatch:
    """Return the examples of some rows, with what their teacher answers."""
    return TaughtBatch(images[rows], labels[rows], jnp.ones(rows.shape, bool), jax.tree.map(lambda some: some[rows], answers))
