"""Many runs of one shape on one data set, trained together: see `lepton_jax.training.stacked`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import unfinished
from experiments.common.config import Adam, Momentum
from experiments.common.objectives import Classes
from experiments.common.training_settings import Training
from experiments.common.unfinished import History
from lepton_jax import identity
from lepton_jax.core import paths
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Batch, Dataset, Split, active_features, shuffled, steps_per_epoch
from lepton_jax.distillation import Outputs, TaughtBatch
from lepton_jax.interchange import load_torch_resnet
from lepton_jax.models import ResNet, ResNetCifar
from lepton_jax.training import (
    FitSettings,
    StackedSource,
    TrainState,
    TrainStep,
    create,
    linen_apply,
    make_train_step,
    stacked,
)


def initial(config: Training, dataset: Dataset, key: Array) -> tuple[PyTree, PyTree]:
    """Return initial parameters, zero for the inputs that are never active, and the model's other collections."""
    variables = dict(jax.jit(config.model.init)(key, jnp.asarray(dataset.train.images[:1])))
    return zero_dead_inputs(variables.pop("params"), active_features(dataset.train.images)), variables


def published(weights: Path, model: ResNet | ResNetCifar, seeds: Sequence[int]) -> TrainState:
    """Return the stacked states of one run a seed, all at published weights.

    Args:
      weights: a file that `load_torch_resnet` reads.
      model: whose weights these are.
      seeds: of the keys.
    """
    variables = jax.tree.map(jnp.asarray, dict(load_torch_resnet(weights, model)))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    begin = functools.partial(create, variables.pop("params"), variables, optax.identity(), identity())
    return jax.jit(jax.vmap(begin))(keys)._replace(step=jnp.int32(0))


def zero_dead_inputs(params: PyTree, active: np.ndarray) -> PyTree:
    """Set the weights of inputs that are never active to zero in the first dense layer, if it reads the inputs themselves.

    They get no gradient, so they would keep their initial values, and survive pruning by magnitude.

    Args:
      params: of a model.
      active: boolean, of one input's shape; see `lepton_jax.data.active_features`.

    Example:
      >>> zero_dead_inputs({"Dense_0": {"kernel": jnp.ones((2, 1))}}, np.array([True, False]))["Dense_0"]["kernel"].tolist()
      [[1.0], [0.0]]
    """
    first = "Dense_0/kernel"
    kernel = paths.flatten(params).get(first)
    if kernel is None or kernel.shape[0] != active.size:
        return params
    return paths.replace(params, {first: jnp.where(active.reshape(-1, 1), kernel, 0)})


def start(config: Training, dataset: Dataset, begin: stacked.Begin, seeds: Sequence[int]) -> TrainState:
    """Return the stacked states of one run a seed, at step 0.

    Args:
      config: gives the model.
      dataset: gives an image, and the inputs that are never active, whose weights begin at zero.
      begin: makes a state of the initial weights; traced once for all seeds.
      seeds: of the initial weights and of all that is random later.
    """

    def one(seed_key: Array) -> TrainState:
        key, init_key = jax.random.split(seed_key)
        params, model_state = initial(config, dataset, init_key)
        return begin(params, model_state, key=key)

    return stacked.start(one, jnp.stack([jax.random.key(seed) for seed in seeds]))


def train(
    config: Training,
    split: Split,
    step: TrainStep,
    state: TrainState,
    seeds: Sequence[int],
    *,
    epochs: int,
    first_epoch: int = 0,
    answers: Outputs | None = None,
    name: str = "train",
    history: History | None = None,
    run_dir: Path | None = None,
) -> TrainState:
    """Train all members for some epochs; each has the batches that `lepton_jax.data.batches` gives its seed.

    Args:
      config: batch size, and how to loop.
      split: to train on.
      step: from `make_train_step`; it must read all that differs between members from the state.
      state: stacked; donated.
      seeds: of the order of the data, one a member.
      epochs: how many.
      first_epoch: the epoch of the data to begin with.
      answers: of every member's teacher for all examples, ``[members, N, ...]``: batches are `TaughtBatch`.
      name, history, run_dir: as for `unfinished.train`; figures are of every epoch.

    Raises:
      FloatingPointError: if a member's loss is not finite.
    """
    whole, begun = steps_per_epoch(split, config.batch_size), int(state.step)
    length, epochs = (whole, epochs) if config.max_steps is None else (min(whole, config.max_steps), 1)
    orders = functools.lru_cache(maxsize=len(seeds))(functools.partial(order, split, config.batch_size))

    def rows(seed: int, number: int) -> np.ndarray:
        epoch, place = divmod(number - begun, length)
        return orders(seed, first_epoch + epoch)[place]

    held = (jnp.asarray(split.images), jnp.asarray(split.labels))
    examples = {"take": batch_of} if answers is None else {"take": taught_batch, "own": answers}
    source = StackedSource(seeds=seeds, rows=rows, held=held, **examples)
    scan = length if config.scan else 1
    settings = FitSettings.by_epochs(epochs, length, first=begun, scan=scan, side_by_side=config.vmap)
    return unfinished.train(state, step, source, settings, name=name, seeds=seeds, history=history, run_dir=run_dir)


def trained(
    config: Training,
    dataset: Dataset,
    optimizer: Adam | Momentum,
    seeds: Sequence[int],
    *,
    epochs: int,
    name: str,
    l2: float = 0.0,
    objective: Classes = Classes(),
    history: History | None = None,
    run_dir: Path | None = None,
) -> TrainState:
    """Train the config's model from its initial weights, under no transform.

    Args:
      optimizer: its rate falls over the epochs.
      l2: see `classification_loss`.
      objective: whose loss it is.
      config, dataset, seeds, epochs, name, history, run_dir: as for `start` and `train`.

    Returns:
      The stacked states of one run a seed.
    """
    tx, plain = optimizer.build(config.steps(dataset, epochs)), identity()
    state = start(config, dataset, functools.partial(create, tx=tx, transform=plain), seeds)
    step = make_train_step(objective.loss(linen_apply(config.model), l2), tx, plain)
    args = (config, dataset.train, step, state, seeds)
    return train(*args, epochs=epochs, name=name, history=history, run_dir=run_dir)


def order(split: Split, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return which examples the batches of an epoch have: int32 ``[steps, batch]``.

    Example:
      >>> split = Split(images=np.zeros((5, 1, 1, 1), np.float32), labels=np.zeros(5, np.int32))
      >>> order(split, 2, 0, 0).shape
      (2, 2)
    """
    places = Split(images=np.zeros((len(split), 1, 1, 1), np.float32), labels=np.arange(len(split), dtype=np.int32))
    steps = steps_per_epoch(split, batch_size)
    return shuffled(places, seed=seed, epoch=epoch).labels[: steps * batch_size].reshape(steps, batch_size)


def batch_of(held: tuple[Array, Array], own: PyTree, rows: Array) -> Batch:
    """Return the examples of some rows."""
    batch: Any = (*(some[rows] for some in held), jnp.ones(rows.shape, bool))
    return Batch(*batch)


def taught_batch(held: tuple[Array, Array], answers: Outputs, rows: Array) -> TaughtBatch:
    """Return the examples of some rows, with what their teacher answers."""
    return TaughtBatch(*batch_of(held, (), rows), jax.tree.map(lambda some: some[rows], answers))


def alone(state: TrainState) -> TrainState:
    """Return one run's state as a stack of one, which `train` takes."""
    return TrainState(state.step, *jax.tree.map(lambda leaf: leaf[None], state[1:]))
