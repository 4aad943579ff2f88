"""The training loop: batches, progress, metrics, evaluation, checkpoints, and what happens when something goes wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from tqdm.auto import tqdm

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.training import multihost
from lepton_jax.training.checkpoint import Checkpoints
from lepton_jax.training.evaluate import Evaluate
from lepton_jax.training.interrupt import deferred_interrupt
from lepton_jax.training.placement import Placement
from lepton_jax.training.running import Run
from lepton_jax.training.sharding import shard_step
from lepton_jax.training.source import StackedSource
from lepton_jax.training.state import TrainState
from lepton_jax.training.step import TrainStep
from lepton_jax.training.writers import Writer


@checked
@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How often the loop does what.

    Args:
      steps: steps of the whole run; a resumed run goes on to the same number.
      log_every: steps between two rows of metrics; also how often the losses are looked at.
      evaluate_every: steps between two evaluations; there is one at the end as well.
      checkpoint_every: steps between two checkpoints; there is one at the end as well.
      scan: steps a dispatch, see `make_scan_steps`; more than 1 for small dense models only.
      side_by_side: stacked runs that are vectorised together, where steps are scanned; 1: one after another, faster on CPU.
      progress: show a bar, if the error stream is a terminal.

    Raises:
      ValueError: if a number is less than 1.

    Example:
      >>> FitSettings(steps=100, log_every=0)
      Traceback (most recent call last):
      ...
      ValueError: FitSettings:
        log_every: must be at least 1; got 0
    """

    steps: int
    log_every: int = 100
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    scan: int = 1
    side_by_side: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        with collect("FitSettings") as problems:
            for name in ("steps", "log_every", "evaluate_every", "checkpoint_every", "scan", "side_by_side"):
                if not getattr(self, name) >= 1:
                    problems.append(f"{name}: must be at least 1; got {getattr(self, name)}")

    @classmethod
    def by_epochs(cls, epochs: int, length: int, *, first: int = 0, **options: Any) -> "FitSettings":
        """Return the settings of a training that is looked at after every epoch of so many steps.

        Args:
          epochs: how many.
          length: steps of each.
          first: the step that the training begins with.
          **options: other fields.

        Example:
          >>> FitSettings.by_epochs(3, 20, scan=20).steps
          60
        """
        steps = first + epochs * length
        return cls(steps=steps, log_every=length, evaluate_every=length, checkpoint_every=length, **options)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens after `step` steps."""
        return step % every == 0 or step == self.steps

    def stride(self, step: int) -> int:
        """How many steps to take at once from here: a function of the step alone, so that resuming changes nothing."""
        end = min([self.steps, *(step - step % n + n for n in (self.log_every, self.evaluate_every, self.checkpoint_every))])
        return self.scan if step % self.scan == 0 and step + self.scan <= end else 1


@checked
def fit(
    state: TrainState,
    step: TrainStep,
    batch_at: Callable[[int], Any] | StackedSource,
    settings: FitSettings,
    *,
    evaluate: Evaluate | None = None,
    history: list[dict[str, Any]] | None = None,
    checkpoints: Checkpoints | None = None,
    metrics: Writer | None = None,
    resume: bool = False,
    placement: Placement | None = None,
    name: str = "train",
) -> TrainState:
    """Train one run, or several that are stacked, to `settings.steps` steps.

    A resumed run gives the same state (on CPU bit for bit) and the same metrics as one that was never stopped, since step k
    depends only on the state after k steps and on ``batch_at(k)``. Ctrl-C and SIGTERM finish the step, save a checkpoint and
    raise. In a run of several processes each calls this alike; process 0 alone writes metrics, shows the bar, and is asked to
    stop, which all do at its next row.

    Args:
      state: where to begin; it is donated. See `lepton_jax.training.stacked` for several runs.
      step: from `make_train_step`; that of stacked runs must read all that differs between them from the state.
      batch_at: ``batch_at(k)`` is the batch of step k, from 0; a `StackedSource` for stacked runs.
      settings: how often what happens.
      evaluate: from `make_evaluate`; its figures are logged with the prefix "eval_".
      history: gets the figures of each evaluation; a resumed run finds those of before in it.
      checkpoints: where to save, and how seldom at most; without it the run cannot be resumed.
      metrics: where to log: means over the steps since the last row.
      resume: go on from the newest checkpoint, if there is one.
      placement: that of the state, from `create`; each batch is spread over its mesh, and the state stays as it lies.
      name: shown at the progress bar.

    Returns:
      The state after the last step.

    Raises:
      ValueError: if there are checkpoints and `resume` is False; if the newest is not the same in all processes.
      FloatingPointError: if a loss or a parameter is not finite, with the step, the run and the leaves; the last checkpoint
        is good.
      KeyboardInterrupt: after Ctrl-C, with a message that says where the state was saved.
      Terminated: after SIGTERM, likewise: a `SystemExit` with code 143.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import create, make_train_step
      >>> loss_fn = lambda params, model_state, batch, key: (jnp.sum((params["w"] - batch) ** 2), (model_state, {}))
      >>> step = make_train_step(loss_fn, optax.sgd(0.25), identity())
      >>> state = create({"w": jnp.zeros(())}, {}, optax.sgd(0.25), identity(), jax.random.key(0))
      >>> state = fit(state, step, lambda number: jnp.float32(4), FitSettings(steps=3, progress=False))
      >>> state.params["w"].item()
      3.5
    """
    if placement is not None:
        step = shard_step(step, placement.devices, axis=placement.batch_axis)
    extra: dict[str, list[dict[str, Any]]] = {"window": [], "history": [] if history is None else history}
    first = multihost.is_first()
    metrics = metrics if first else None
    latest = None if checkpoints is None else checkpoints.latest_step
    multihost.agree("the newest checkpoint", latest)
    if checkpoints is not None and latest is not None:
        if not resume:
            raise ValueError(
                f"{checkpoints.directory} holds a checkpoint of step {latest}; resume it, or choose another folder."
            )
        checkpoints.hold()
        state, saved = checkpoints.restore(state)
        extra["window"], extra["history"][:] = saved["window"], saved.get("history", [])
    ways: dict[str, Any] = {"scan": settings.scan, "side_by_side": settings.side_by_side}
    run = Run(state, step, batch_at, **ways, checkpoints=checkpoints, extra=extra, name=name)
    del state
    if metrics is not None:
        metrics.rewind(run.done)
    hidden = None if settings.progress and first else True  # None: hidden unless the error stream is a terminal
    bar = tqdm(total=settings.steps, initial=run.done, desc=name, unit="step", disable=hidden)
    with deferred_interrupt() as signal_came, bar:
        while run.done < settings.steps and not _to_stop(signal_came, run.done, settings):
            count = settings.stride(run.done)
            run.advance(count)
            bar.update(count)
            if settings.due(run.done, settings.log_every):
                row = run.take_means()
                bar.set_postfix({key: f"{value:.4g}" for key, value in row.items()}, refresh=False)
                if metrics is not None:
                    metrics.write(run.done, row)
            if evaluate is not None and settings.due(run.done, settings.evaluate_every):
                figures = evaluate(run.state)
                if history is not None:
                    history.append(figures)
                if metrics is not None:
                    metrics.write(run.done, {f"eval_{key}": value for key, value in figures.items()})
            if settings.due(run.done, settings.checkpoint_every) and (checkpoints is None or checkpoints.due):
                run.save()
        if run.done < settings.steps:
            run.interrupt(multihost.from_first("the signal", signal_came()))
    if checkpoints is not None:
        checkpoints.wait()
    return run.state


def _to_stop(signal_came: Callable[[], int | None], done: int, settings: FitSettings) -> bool:
    """Whether to stop before this step; of several processes all at the same one."""
    if jax.process_count() == 1:
        return signal_came() is not None
    return settings.due(done, settings.log_every) and bool(multihost.from_first("whether to stop", signal_came() is not None))
