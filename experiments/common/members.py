"""Many runs of one shape, their states stacked, trained in one compiled program.

The runs ("members") differ in their seeds, and in whatever their transforms keep in the state: initial weights, order of the
data, masks, sparsities. On an accelerator they go side by side by `jax.vmap`. On CPU they are faster one after another inside
the same program, since under vmap a condition that differs between members becomes a choice between two results, both computed,
so that masks are made at every step. Convolutions inside a loop are slow on CPU: there the loops are Python's, around one
compiled step.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from experiments.common.config import Adam, Momentum
from experiments.common.training_settings import Training
from experiments.common.unfinished import History, Unfinished
from lepton_jax import identity
from lepton_jax.core import paths
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Batch, Dataset, Split, active_features, shuffled, steps_per_epoch
from lepton_jax.training import TrainState, TrainStep, classification_loss, create, linen_apply, make_train_step


class Begin(Protocol):
    """What a run makes of its initial weights."""

    def __call__(self, params: PyTree, model_state: PyTree, *, key: Array) -> TrainState: ...


def initial(config: Training, dataset: Dataset, key: Array) -> tuple[PyTree, PyTree]:
    """Return initial parameters, zero for the inputs that are never active, and the model's other collections."""
    variables = dict(jax.jit(config.model.init)(key, jnp.asarray(dataset.train.images[:1])))
    return zero_dead_inputs(variables.pop("params"), active_features(dataset.train.images)), variables


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


def start(config: Training, dataset: Dataset, begin: Begin, seeds: Sequence[int]) -> TrainState:
    """Return the stacked states of one run a seed, at step 0.

    Args:
      config: gives the model.
      dataset: gives an image, and the inputs that are never active, whose weights begin at zero.
      begin: makes a state of the initial weights; traced once for all seeds.
      seeds: of the initial weights and of all that is random later.

    Returns:
      A `TrainState` whose leaves have a leading axis of ``len(seeds)``, except ``step``, which the members share.
    """

    def one(seed_key: Array) -> TrainState:
        key, init_key = jax.random.split(seed_key)
        params, model_state = initial(config, dataset, init_key)
        return begin(params, model_state, key=key)

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    # Without a first axis of its own the step stays a number that all members share, and a condition on it a condition.
    return jax.jit(jax.vmap(one))(keys)._replace(step=jnp.int32(0))


def restart(state: TrainState, begin: Begin) -> TrainState:
    """Begin anew, at step 0, from the weights that trained members have."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.key, state.step)
    begun = jax.jit(jax.vmap(lambda params, model_state, key: begin(params, model_state, key=key)))
    return begun(state.params, state.model_state, keys)._replace(step=jnp.int32(0))


def stack(states: Sequence[TrainState]) -> TrainState:
    """Join stacked states of the same step and structure into one.

    Raises:
      ValueError: if their structures differ, so that no common program can train them.
    """
    try:
        return _join(tuple(states), jnp.concatenate)
    except (ValueError, TypeError) as error:
        raise ValueError(f"these runs have states of different structure and must be trained apart: {error}") from error


@functools.partial(jax.jit, static_argnums=1)  # compiled whole: leaf by leaf it would be dozens of small programs
def _join(states: tuple[TrainState, ...], join: Callable[[list[Array]], Array]) -> TrainState:
    def joined(*leaves: Array) -> Array:
        return jnp.copy(join(list(leaves)))  # what is joined is donated, and its parts may be needed again

    return TrainState(jnp.copy(states[0].step), *jax.tree.map(joined, *[state[1:] for state in states]))


@jax.jit
def member(state: TrainState, index: int) -> TrainState:
    """Return one run's state out of a stack, in buffers of its own."""
    return TrainState(jnp.copy(state.step), *jax.tree.map(lambda leaf: leaf[index], state[1:]))


def count(state: TrainState) -> int:
    """Return how many runs are stacked."""
    return state.key.shape[0]


def apart(state: TrainState) -> list[TrainState]:
    """Return every run's state out of a stack, in buffers of their own."""
    return [member(state, index) for index in range(count(state))]


def train(
    config: Training,
    split: Split,
    step: TrainStep,
    state: TrainState,
    seeds: Sequence[int],
    *,
    epochs: int,
    first_epoch: int = 0,
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
      name: shown at the progress bar.
      history: called with the stacked states after every epoch; it may not keep them.
      run_dir: gets a checkpoint now and then, so that the same call goes on from there; None: none is written.

    Raises:
      FloatingPointError: if a member's loss is not finite.
    """
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)

    def advance(state: TrainState, orders: np.ndarray) -> tuple[TrainState, Any]:
        if config.scan:
            return _scanned(step, config.vmap, state, images, labels, jnp.asarray(orders))
        return _looped(step, state, images, labels, orders)

    those = range(first_epoch, first_epoch + epochs)
    return run_epochs(config, split, advance, state, seeds, those, name, history, run_dir)


def trained(
    config: Training,
    dataset: Dataset,
    optimizer: Adam | Momentum,
    seeds: Sequence[int],
    *,
    epochs: int,
    name: str,
    l2: float = 0.0,
    history: History | None = None,
    run_dir: Path | None = None,
) -> TrainState:
    """Train the config's model from its initial weights, under no transform.

    Args:
      optimizer: its rate falls over the epochs.
      l2: see `classification_loss`.
      config, dataset, seeds, epochs, name, history, run_dir: as for `start` and `train`.

    Returns:
      The stacked states of one run a seed.
    """
    tx, plain = optimizer.build(config.steps(dataset, epochs)), identity()
    state = start(config, dataset, functools.partial(create, tx=tx, transform=plain), seeds)
    step = make_train_step(classification_loss(linen_apply(config.model), l2=l2), tx, plain)
    args = (config, dataset.train, step, state, seeds)
    return train(*args, epochs=epochs, name=name, history=history, run_dir=run_dir)


def run_epochs(
    config: Training,
    split: Split,
    advance: Callable[[TrainState, np.ndarray], tuple[TrainState, Any]],
    state: TrainState,
    seeds: Sequence[int],
    epochs: range,
    name: str,
    history: History | None,
    run_dir: Path | None,
) -> TrainState:
    """Advance all members epoch by epoch; see `train`.

    Args:
      advance: takes the steps of an epoch, given which examples their batches have: int32 ``[members, steps, batch]``;
        returns the states and the losses, ``[members, steps]``.
      epochs: of the data.
      config, split, state, seeds, name, history, run_dir: as for `train`.

    Raises:
      FloatingPointError: if a member's loss is not finite.
    """
    unfinished = Unfinished(run_dir, name, seeds, history)
    state, done = unfinished.restored(state)
    with tqdm(total=len(epochs) * count(state), initial=done * count(state), desc=name, unit="epoch", disable=None) as bar:
        for epoch in epochs[done:]:
            orders = np.stack([order(split, config.batch_size, seed, epoch)[: config.max_steps] for seed in seeds])
            state, losses = advance(state, orders)
            losses = np.asarray(losses)
            bad = [f"{number} (seed {seed})" for number, seed in enumerate(seeds) if not np.isfinite(losses[number]).all()]
            if bad:
                raise FloatingPointError(f"{name}: the loss is not finite in epoch {epoch}, of member {', '.join(bad)}.")
            bar.update(count(state))
            bar.set_postfix({"loss": f"{losses.mean():.4f}"}, refresh=False)
            if history is not None:
                history(state)
            unfinished.save(state, epoch + 1 - epochs.start)
            if config.max_steps is not None:
                break
    return state


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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _scanned(
    step: TrainStep, side_by_side: int, state: TrainState, images: Array, labels: Array, orders: Array
) -> tuple[TrainState, Array]:
    """Take the steps of ``orders[members, steps, batch]``, all in one program; losses ``[members, steps]``."""

    def one(run: tuple[tuple[Any, ...], Array]) -> tuple[tuple[Any, ...], Array]:
        rest, places = run
        moved, losses = jax.lax.scan(functools.partial(_take, step, images, labels), TrainState(state.step, *rest), places)
        return moved[1:], losses

    batch_size = side_by_side if side_by_side > 1 else None
    moved, losses = jax.lax.map(one, (state[1:], orders), batch_size=batch_size)
    return TrainState(state.step + orders.shape[1], *moved), losses


def _looped(
    step: TrainStep, state: TrainState, images: Array, labels: Array, orders: np.ndarray
) -> tuple[TrainState, np.ndarray]:
    """Take the same steps with a call for each."""
    runs, losses = [], []
    for run, places in zip(apart(state), orders, strict=True):
        mine = []
        for place in places:
            run, loss = _one(step, images, labels, run, jnp.asarray(place))
            mine.append(loss)
        runs.append(run)
        losses.append(jax.device_get(mine))
    return _join(tuple(runs), jnp.stack), np.array(losses)


def _take(step: TrainStep, images: Array, labels: Array, state: TrainState, places: Array) -> tuple[TrainState, Array]:
    batch: Any = (images[places], labels[places], jnp.ones(places.shape, bool))
    state, metrics = step(state, Batch(*batch))
    return state, metrics["loss"]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _one(step: TrainStep, images: Array, labels: Array, state: TrainState, places: Array) -> tuple[TrainState, Any]:
    return _take(step, images, labels, state, places)
