"""Recipes that are found for a transformer on characters, at the same bytes of tensors; rows as in the study of tuned recipes.

Every seed has a transformer of its own, trained here, and one table of what its layers can bear, measured on windows of the
training text. "uniform" is one choice for all layers, of all that fit the one of the least divergence; "tuned" is allocated and
refined; "bits", "zeros" and "rank" are tuned with that technique alone. Divergences, in nats a character, and accuracies, of
each next character, are of the test text. Nothing is trained after it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.common import char_lm, resnet20, study
from experiments.common.measuring import packed_variables
from experiments.common.results import Result
from experiments.common.study import Cell, Parts
from experiments.studies import tuning
from experiments.studies.tuning import Row, variables_of
from lepton_jax import account, identity, save
from lepton_jax.artifact import tensor_bytes
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.training import TrainState, create
from lepton_jax.tuning.outputs import Outputs as Divergence

_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterTuning(study.Study):
    """A table: rows are ways to find a recipe."""

    passing: ClassVar[tuple[str, ...]] = ("only", "text")

    text: Path = resnet20.FOLDER / "tinyshakespeare" / "input.txt"
    """The file of the text."""
    model: char_lm.CharLM
    """The transformer, and its training."""
    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress]
    """The ways; none is trained."""
    bits: tuple[int, ...] = (2, 3, 4, 6)
    """What a layer may have."""
    sparsity: tuple[float, ...] = (0.5, 0.75)
    """Fractions of a layer that may be zero."""
    rank: tuple[float, ...] = (0.25,)
    """Fractions of a layer's full rank that it may have."""
    calibration: int = 64
    """Windows of the training text that tables are measured on."""
    tested: int = 256
    """Windows of the test text at most."""
    evaluations: int = 50
    """Recipes that a refinement measures at most."""

    weights: ClassVar[None] = None
    trained_sparsity: ClassVar[tuple[float, ...]] = ()

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(1, "calibration", "tested", "evaluations")
        if any(row.kind == "trained" for row in self.rows):
            yield "rows: none can be trained here"

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)  # type: ignore[arg-type]

    def report(self, results: Sequence[Result]) -> Parts:
        return tuning.parts(results)


class Runner(tuning.Runner):
    """Finds every row's recipe for every seed's transformer."""

    study: Any

    @cached_property
    def parts(self) -> char_lm.Text:
        """The text."""
        return char_lm.load_text(self.study.text)

    @cached_property
    def before(self) -> list[TrainState]:
        """Every seed's transformer."""
        config = self.study.model
        if self.study.max_steps is not None:
            config = dataclasses.replace(config, steps=min(config.steps, self.study.max_steps))
        begin = partial(create, model_state={}, tx=optax.identity(), transform=identity())
        trained = [char_lm.train(seed, config, self.parts, self.run_dir / "dense") for seed in self.seeds]
        return [begin(held["params"], key=jax.random.key(seed)) for held, seed in zip(trained, self.seeds)]

    @cached_property
    def model(self) -> Any:
        """The transformer, of all its variables."""
        return self.study.model.model(len(self.parts.characters)).apply

    def batches(self, seed: int) -> list[Any]:
        """Windows that a seed's tables are measured on."""
        rows = char_lm.windows(self.parts.train, self.study.model.length)
        chosen = np.random.default_rng(seed).choice(len(rows), min(self.study.calibration, len(rows)), replace=False)
        return [jnp.asarray(rows[some, :-1]) for some in np.array_split(chosen, -(-len(chosen) // _BATCH))]

    def windows(self, part: str) -> list[Array]:
        """Windows, with the character after each, of a part of the text."""
        rows = char_lm.windows(getattr(self.parts, part), self.study.model.length)[: self.study.tested]
        return [jnp.asarray(rows[at : at + _BATCH]) for at in range(0, len(rows), _BATCH)]

    @cached_property
    def wrong(self) -> Any:
        """How many next characters of a batch are guessed wrongly."""
        return jax.jit(lambda held, batch: jnp.sum(jnp.argmax(self.model(held, batch[:, :-1]), -1) != batch[:, 1:]))

    def error(self, seen: PyTree, part: str) -> float:
        """Return the share of wrong guesses."""
        batches = self.windows(part)
        return sum(int(self.wrong(seen, one)) for one in batches) / sum(one[:, 1:].size for one in batches)

    def figures_of(
        self, dense: TrainState, transform: Transform, run: TrainState, limit: float, cell: Cell | None = None
    ) -> dict[str, Any]:
        packed, view = packed_variables(transform, run), transform.view(run.params, run.tstate)
        seen = variables_of(run._replace(params=view))
        batches = [(one[:, :-1],) for one in self.windows("test")]
        figures: dict[str, Any] = {"error": self.error(seen, "test"), "validation_error": self.error(seen, "validation")}
        if cell is not None:
            path = self.path(cell, "files", "lepton")
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, self.model, packed, batches[0][0])
            counted = account(path)
            figures["file_bytes"] = counted.total - counted.program
        moved = Divergence(self.model, variables_of(dense), batches, "kl").of(seen)
        return {**figures, "kl": moved, "tensor_bytes": tensor_bytes(packed), "limit": limit}
