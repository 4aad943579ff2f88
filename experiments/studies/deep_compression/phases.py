"""Train a config's phases one after another; each keeps what the ones before it reached."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.common import processes
from experiments.common.config import Config, to_json
from experiments.common.members import zero_dead_inputs
from experiments.common.writers import Logs, Place
from lepton_jax import chain, freeze, identity
from lepton_jax.core import paths
from lepton_jax.core.transform import Transform
from lepton_jax.data import Batch, Dataset, Split, WarpBank, active_features, batches, eval_batches, steps_per_epoch, warp_bank
from lepton_jax.training import (
    Checkpoints,
    Evaluate,
    FitSettings,
    ModelApply,
    TrainState,
    batch_source,
    classification_loss,
    create,
    fingerprint,
    linen_apply,
    make_evaluate,
    make_train_step,
)

_EVALUATIONS = 20
_EVALUATIONS_PER_CHECKPOINT = 4
EVAL_BATCH = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The model at the end of a phase.

    Args:
      name: the phase's.
      transform: the view that the phase trained under: all phases' so far.
      state: parameters, model state and transform state.
      steps: taken in this phase.
    """

    name: str
    transform: Transform
    state: TrainState
    steps: int


def train(
    config: Config, dataset: Dataset, run_dir: Path, *, resume: bool, progress: bool = True, writers: Sequence[Place] = ()
) -> Iterator[Stage]:
    """Train phase after phase, yielding the model at the end of each.

    Args:
      config: the experiment.
      dataset: what ``config.data.load()`` returned.
      run_dir: gets `metrics.jsonl`, and `checkpoints/` with a folder a phase.
      resume: go on from the checkpoints there are; the result is that of an uninterrupted run.
      progress: show bars.
      writers: where metrics go besides `metrics.jsonl`.
    """
    with Logs(run_dir, run_dir.name, to_json(config), writers) as logs:
        yield from _phases(config, dataset, run_dir, logs, resume=resume, progress=progress)


def _phases(config: Config, dataset: Dataset, run_dir: Path, logs: Logs, *, resume: bool, progress: bool) -> Iterator[Stage]:
    apply = linen_apply(config.model)
    key, init_key = jax.random.split(jax.random.key(config.seed))
    variables = dict(jax.jit(config.model.init)(init_key, jnp.asarray(dataset.train.images[:1])))
    params = zero_dead_inputs(variables.pop("params"), active_features(dataset.train.images))
    bank = None if config.warp is None else warp_bank(config.warp, dataset.train.images.shape[1:3], seed=config.seed)
    epoch_steps = steps_per_epoch(dataset.train, config.batch_size)
    held_out = dataset.validation if len(dataset.validation) else dataset.train
    splits = {"": held_out, "test_": dataset.test}
    transform, tstate, model_state, first = identity(), (), variables, 0
    for number, phase in enumerate(config.phases):
        steps = phase.epochs * epoch_steps
        steps = steps if config.max_steps is None else min(steps, config.max_steps)
        transform = chain(freeze(transform, tstate), *(method.build(steps) for method in phase.transforms))
        tx = phase.optimizer.build(steps)
        state = create(params, model_state, tx, transform, jax.random.fold_in(key, number))
        step = make_train_step(classification_loss(apply, l2=phase.l2, l2_select=paths.floating), tx, transform)
        with Checkpoints(run_dir / "checkpoints" / phase.name, run=fingerprint(to_json(config))) as checkpoints:
            state = processes.train(
                state,
                step,
                batch_source(partial(_batches_from, config, dataset, bank, first)),
                _settings(config, steps, progress),
                evaluate=_evaluate(apply, transform, splits),
                checkpoints=checkpoints,
                metrics=logs.phase(phase.name),
                resume=resume,
                name=phase.name,
            )
        yield Stage(name=phase.name, transform=transform, state=state, steps=steps)
        params, model_state, tstate, first = state.params, state.model_state, state.tstate, first + steps


def _evaluate(apply: ModelApply, transform: Transform, splits: Mapping[str, Split]) -> Evaluate:
    """Measure several splits, the figures of each with its prefix.

    Nothing is chosen by the test split: its errors are logged so that the report can say that of the best epoch too.
    """
    parts = {
        prefix: make_evaluate(apply, transform, eval_batches(split, min(EVAL_BATCH, len(split))))
        for prefix, split in splits.items()
    }
    return lambda state: {prefix + name: value for prefix, part in parts.items() for name, value in part(state).items()}


def _batches_from(config: Config, dataset: Dataset, bank: WarpBank | None, first: int, step: int) -> Iterator[Batch]:
    """Go on with the data where the phase before ended, `first` steps into the run."""
    return batches(dataset.train, config.batch_size, seed=config.seed, start_step=first + step, warps=bank)


def _settings(config: Config, steps: int, progress: bool) -> FitSettings:
    """Evaluate some twenty times a phase, at whole dispatches."""
    scan = min(config.scan, steps)
    every = math.ceil(steps / _EVALUATIONS / scan) * scan
    return FitSettings(
        steps=steps,
        log_every=every,
        evaluate_every=every,
        checkpoint_every=every * _EVALUATIONS_PER_CHECKPOINT,
        scan=scan,
        progress=progress,
    )
