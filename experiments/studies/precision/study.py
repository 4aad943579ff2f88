"""A study of mixed precision: one model trained in several precisions, all from the same seeds."""

import dataclasses
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from flax import linen as nn

from experiments.common import char_lm, members, unfinished
from experiments.common.config import Adam, Digits, Tfds
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, accuracies, kept
from experiments.common.rows import check_rows, chosen
from experiments.common.training_settings import Training
from lepton_jax import identity
from lepton_jax.core.errors import collect
from lepton_jax.data import Dataset
from lepton_jax.precision import DynamicScale, NoScale, Policy, StaticScale, autocast
from lepton_jax.training import TrainState, classification_loss, create, linen_apply, make_train_step, stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One precision."""

    name: str
    """Of the row."""
    policy: Policy | None = None
    """The dtypes; None: float32, and no rewrite."""
    loss_scale: NoScale | StaticScale | DynamicScale | None = None
    """How the loss is scaled; None: not at all, and no step is skipped."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Row: name must be a word, since it names files; got {self.name!r}.")

    def seen(self, apply: Any) -> Any:
        """Return the model in this precision."""
        return apply if self.policy is None else autocast(apply, self.policy)


class Trained(NamedTuple):
    """What the runs of a row end as."""

    figures: dict[str, Any]
    """By seed; ``figure`` is the one that is drawn."""
    runs: list[TrainState]
    seconds: float
    """Of training, compilation included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Images in classes; the figure is the test accuracy in percent."""

    data: Digits | Tfds
    """Where they come from."""
    model: Annotated[nn.Module, tyro.conf.Suppress]
    """The network."""
    epochs: int
    """Passes over the training set."""
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of every row."""

    figure = "test accuracy (%)"

    @cached_property
    def _dataset(self) -> Dataset:
        return self.data.load()

    def run(self, row: Row, seeds: Sequence[int], max_steps: int | None, run_dir: Path) -> Trained:
        """Train every seed."""
        config = Training(name=row.name, data=self.data, model=self.model, epochs=self.epochs, max_steps=max_steps)
        dataset, plain = self._dataset, identity()
        tx = self.optimizer.build(config.steps(dataset, self.epochs))
        apply = row.seen(linen_apply(self.model))
        begin = partial(create, tx=tx, transform=plain, loss_scale=row.loss_scale)
        state = members.start(config, dataset, begin, seeds)
        step = make_train_step(classification_loss(apply), tx, plain, loss_scale=row.loss_scale)
        history, begun = History(Measure(apply, dataset), plain), time.perf_counter()
        args = (config, dataset.train, step, state, seeds)
        state = members.train(*args, epochs=self.epochs, name=row.name, history=history, run_dir=run_dir)
        seconds = time.perf_counter() - begun
        figures = {name: history.figures[name] for name in ("error", "best_error", "nonzeros")}
        return Trained({"figure": accuracies(figures), **figures}, stacked.apart(state), seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Characters:
    """A character language model; the figure is the perplexity a character of the test part."""

    text: Path
    """The file of the text."""
    model: char_lm.CharLM
    """The transformer, and its training."""

    figure = "test perplexity a character"

    @cached_property
    def _text(self) -> char_lm.Text:
        return char_lm.load_text(self.text)

    def run(self, row: Row, seeds: Sequence[int], max_steps: int | None, run_dir: Path) -> Trained:
        """Train every seed."""
        config, text = self.model, self._text
        module = config.model(len(text.characters))
        apply, steps = row.seen(module.apply), min(config.steps, max_steps or config.steps)
        figures, runs, seconds = [], [], 0.0
        for seed in seeds:
            params = module.init(jax.random.key(seed), np.zeros((1, config.length), np.int32))["params"]
            tx, plain, scale, begun = config.optimizer(steps), identity(), row.loss_scale, time.perf_counter()
            step = make_train_step(char_lm.next_token_loss(apply), tx, plain, loss_scale=scale)
            state = create(params, {}, tx, plain, jax.random.key(seed), loss_scale=scale)
            args = (state, step, char_lm.batches_by_step(text.train, config, seed), char_lm.settings(steps))
            state = unfinished.train(*args, name=f"{row.name}, seed {seed}", seeds=[seed], run_dir=run_dir)
            seconds += time.perf_counter() - begun
            part = text.test if max_steps is None else text.test[: 2 * config.length + 1]
            figures.append(char_lm.perplexity(apply, {"params": state.params}, part, config.length))
            runs.append(state)
        return Trained({"figure": figures}, runs, seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A table: rows are precisions."""

    name: str
    """Names the run folder."""
    task: Images | Characters
    """What is trained."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The precisions; the first is the reference."""
    seed: int = 0
    """The first seed."""
    max_steps: int | None = None
    """Stop every run after so many steps, for a trial run."""
    only: tuple[str, ...] = ()
    """Run only the rows of these names."""

    def __post_init__(self) -> None:
        with collect(f"Study {self.name!r}") as problems:
            check_rows(problems, [row.name for row in self.rows], self.only)
            if self.max_steps is not None and self.max_steps < 1:
                problems.append(f"max_steps: must be at least 1; got {self.max_steps}")


def run(study: Study, seeds: Sequence[int], run_dir: Path) -> list[Result]:
    """Run the rows that are missing; return all results.

    Args:
      study: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each finished row, which is not run again.
    """
    rows = chosen(study.rows, study.only)
    return [kept(run_dir / "rows" / f"{row.name}.json", partial(run_row, study, row, seeds, run_dir)) for row in rows]


def run_row(study: Study, row: Row, seeds: Sequence[int], run_dir: Path) -> Result:
    """Train a row's seeds; return its figures."""
    trained = study.task.run(row, seeds, study.max_steps, run_dir)
    result = {"row": row.name, "seeds": list(seeds), **trained.figures, "seconds": trained.seconds}
    if row.loss_scale is not None:
        scales = jax.device_get([run.loss_scale for run in trained.runs])
        result |= {"scale": [float(s.scale) for s in scales], "skipped": [int(s.skipped) for s in scales]}
    return result
