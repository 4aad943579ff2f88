"""The networks that are deployed: trained here, of others, or of random weights for speed and size alone."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from flax import linen as nn

from experiments.common import char_lm, members, resnet20, study
from experiments.common.char_lm import CharLM
from experiments.common.config import Adam
from experiments.common.sources import Data
from experiments.common.training_settings import Training
from lepton_jax.core.typing import PyTree
from lepton_jax.data import shuffled
from lepton_jax.training import stacked


class Network(NamedTuple):
    """A network of one seed."""

    apply: Callable[..., Any]
    variables: PyTree
    known: np.ndarray
    """Training inputs: ranges are found on them, and what lost channels or rank learns from them."""
    test: np.ndarray
    labels: np.ndarray | None = None
    """Classes, or the token that follows each; None: there is nothing to be right about."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """A network."""

    kind: Literal["trained", "published", "random", "characters"]
    """Where its weights come from."""
    model: Annotated[Any, tyro.conf.Suppress]
    """The module; of characters a `CharLM`."""
    data: Annotated[Any, tyro.conf.Suppress] = None
    """Where the examples come from; of characters, and of random weights, none."""
    epochs: int = 1
    """Of its training."""
    shape: tuple[int, ...] = ()
    """Of random inputs, without the batch."""

    def networks(
        self, seeds: Sequence[int], run_dir: Path, *, known: int, test: int, text: Path, steps: int | None
    ) -> list[Network]:
        """Return a network of each seed.

        Args:
          seeds: of the runs.
          run_dir: keeps the trained weights.
          known: how many training inputs.
          test: how many test inputs at most.
          text: a file of characters.
          steps: the most that a training takes.
        """
        if self.kind == "characters":
            return [_characters(self.model, text, seed, run_dir, known=known, test=test, steps=steps) for seed in seeds]
        if self.kind == "random":
            return [_random(self.model, self.shape, seed, known=known, test=test) for seed in seeds]
        dataset = self.data.load()
        if self.kind == "published":
            runs = [resnet20.load_variables(self.data.folder)] * len(seeds)
        else:
            config = _training(self, steps)
            tx = Adam(learning_rate=2e-3)
            state = members.trained(
                config, dataset, tx, seeds, epochs=self.epochs, name=f"{self.name}-beforehand", run_dir=run_dir
            )
            runs = [{"params": run.params, **run.model_state} for run in stacked.apart(state)]
        apply, some = self.model.apply, slice(test)
        return [
            Network(
                apply,
                variables,
                np.asarray(shuffled(dataset.train, seed=seed, epoch=0).images[:known]),
                np.asarray(dataset.test.images[some]),
                np.asarray(dataset.test.labels[some]),
            )
            for variables, seed in zip(runs, seeds)
        ]


def _training(row: Row, steps: int | None) -> Training:
    data: Data = row.data
    return Training(name=row.name, data=data, model=row.model, epochs=row.epochs, scan=False, max_steps=steps)


def _characters(config: CharLM, path: Path, seed: int, run_dir: Path, *, known: int, test: int, steps: int | None) -> Network:
    text = char_lm.load_text(path)
    config = dataclasses.replace(config, steps=min(config.steps, steps or config.steps))
    variables = char_lm.train(seed, config, text, run_dir / "characters")
    model = config.model(len(text.characters))
    given = next(char_lm.batches(text.train, dataclasses.replace(config, batch_size=known), seed))[:, :-1]
    count = min(test, (len(text.test) - 1) // config.length)
    begins = np.arange(count) * config.length
    windows = text.test[begins[:, None] + np.arange(config.length + 1)]
    return Network(model.apply, variables, given, windows[:, :-1], windows[:, 1:])


def _random(model: nn.Module, shape: tuple[int, ...], seed: int, *, known: int, test: int) -> Network:
    draw = np.random.default_rng(seed)
    given, tests = (draw.normal(size=(count, *shape)).astype(np.float32) for count in (min(known, 64), min(test, 64)))
    return Network(model.apply, model.init(jax.random.key(seed), given[:1]), given, tests)
