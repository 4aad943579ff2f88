"""One model trained in several precisions, all from the same seeds.

Figures are those after the last step, in the precision of training. `difference` is that of each seed from the same seed of the
first row; `last scale` that of the loss at the end; skipped steps are by seed.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from flax import linen as nn

from experiments.common import char_lm, members, study, unfinished
from experiments.common.columns import ROW, Column, figure, plain, tabulate
from experiments.common.config import Adam, Digits, Tfds
from experiments.common.curves import Curve, Panel, draw
from experiments.common.figures import Drawing
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, accuracies, spread
from experiments.common.study import Cell
from experiments.common.tables import Lines
from experiments.common.training_settings import Training
from lepton_jax import identity
from lepton_jax.precision import DynamicScale, NoScale, Policy, StaticScale, autocast
from lepton_jax.training import TrainState, classification_loss, create, linen_apply, make_train_step, stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """One precision."""

    policy: Policy | None = None
    """The dtypes; None: float32, and no rewrite."""
    loss_scale: NoScale | StaticScale | DynamicScale | None = None
    """How the loss is scaled; None: not at all, and no step is skipped."""

    def seen(self, apply: Any) -> Any:
        """Return the model in this precision."""
        return apply if self.policy is None else autocast(apply, self.policy)


Trained = tuple[Result, list[TrainState]]
"""Figures by seed, of which ``figure`` is drawn, with the seconds of training; the states."""


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

    def run(self, row: Row, seeds: Sequence[int], max_steps: int | None, run_dir: Path) -> Trained:
        """Train every seed."""
        config = Training(name=row.name, data=self.data, model=self.model, epochs=self.epochs, max_steps=max_steps)
        dataset, same, scale = self.data.load(), identity(), row.loss_scale
        tx, apply = self.optimizer.build(config.steps(dataset, self.epochs)), row.seen(linen_apply(self.model))
        state = members.start(config, dataset, partial(create, tx=tx, transform=same, loss_scale=scale), seeds)
        step = make_train_step(classification_loss(apply), tx, same, loss_scale=scale)
        history = History(Measure(apply, dataset), same)
        args = (config, dataset.train, step, state, seeds)
        state = members.train(*args, epochs=self.epochs, name=row.name, history=history, run_dir=run_dir)
        figures = {name: history.figures[name] for name in ("error", "best_error", "nonzeros")}
        return {"figure": accuracies(figures), **figures, "seconds": history.seconds}, stacked.apart(state)


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
        config, text, same, scale = self.model, self._text, identity(), row.loss_scale
        module, steps = config.model(len(text.characters)), min(config.steps, max_steps or config.steps)
        apply, tx, begun = row.seen(module.apply), config.optimizer(steps), time.perf_counter()
        runs = []
        for seed in seeds:
            params = module.init(jax.random.key(seed), np.zeros((1, config.length), np.int32))["params"]
            state = create(params, {}, tx, same, jax.random.key(seed), loss_scale=scale)
            step = make_train_step(char_lm.next_token_loss(apply), tx, same, loss_scale=scale)
            args = (state, step, char_lm.batches_by_step(text.train, config, seed), char_lm.settings(steps))
            runs.append(unfinished.train(*args, name=f"{row.name}, seed {seed}", seeds=[seed], run_dir=run_dir))
        seconds = time.perf_counter() - begun
        part = text.test if max_steps is None else text.test[: 2 * config.length + 1]
        figures = [char_lm.perplexity(apply, {"params": run.params}, part, config.length) for run in runs]
        return {"figure": figures, "seconds": seconds}, runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedPrecision(study.Study):
    """A table: rows are precisions, of which the first is the reference."""

    task: Images | Characters
    """What is trained."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The precisions."""

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> list[str | Lines | Drawing]:
        name = self.task.figure
        drawing = Drawing(file="figure.png", alternative=f"{name} by precision", draw=partial(plot, results=results, name=name))
        return [table(results, name), drawing]


def table(results: Sequence[Result], name: str) -> Lines:
    """Return the cells: a line a precision.

    Example:
      >>> results = [{"row": "float32", "figure": [2.0, 3.0]}, {"row": "half", "figure": [2.5, 3.0]}]
      >>> [line[:3] for line in table(results, "accuracy")]
      [('precision', 'accuracy', 'difference'), ('float32', '2.50 ± 0.71', ''), ('half', '2.75 ± 0.35', '+0.25 ± 0.35')]
    """

    def difference(result: Result, base: Result | None) -> str:
        if base is None or result is base:
            return ""
        each = [a - b for a, b in zip(result["figure"], base["figure"], strict=True)]
        return f"{'+' if statistics.mean(each) >= 0 else ''}{spread(each)}"

    columns = (
        ROW._replace(title="precision"),
        figure(name, "figure"),
        Column("difference", difference),
        plain("last scale", lambda r: ", ".join(f"{value:g}" for value in sorted(set(r.get("scale", ()))))),
        plain("skipped steps", lambda r: ", ".join(map(str, r.get("skipped", ())))),
    )
    return tabulate(results, columns, lambda _: results[0])


def plot(path: Path, results: Sequence[Result], name: str) -> None:
    """Draw means with bars of one standard deviation, every seed's figure as a dot."""
    places = [float(place) for place in range(len(results))]
    look = {"linestyle": "none", "color": "C0"}
    curve = Curve(label="_", x=places, y=[result["figure"] for result in results], look=look)
    ticks = {place: result["row"] for place, result in zip(places, results)}
    draw(path, [Panel(curves=[curve], ticks=ticks, seeds=True)], y=name, size=(7, 3.6))


class Runner(study.Runner[MixedPrecision]):
    """Trains every seed of a row."""

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        row, config = cells[0].row, self.study
        figures, runs = config.task.run(row, self.seeds, config.max_steps, self.run_dir)
        if row.loss_scale is not None:
            scales = jax.device_get([run.loss_scale for run in runs])
            figures |= {"scale": [float(s.scale) for s in scales], "skipped": [int(s.skipped) for s in scales]}
        return [figures]
