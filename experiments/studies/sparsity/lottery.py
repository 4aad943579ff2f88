"""The rounds of lottery tickets: settings, branches, and what is measured of each."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.common import members
from experiments.common.config import Adam, to_json
from experiments.common.measuring import History, Measure
from experiments.common.results import Result, save_result
from experiments.common.tables import revision
from experiments.common.training_settings import Training
from lepton_jax.core import paths
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Dataset
from lepton_jax.pruning.sanity import reinitialize
from lepton_jax.pruning.sparse_training import FixedMasksState, fixed_masks, next_masks, rewind
from lepton_jax.training import (
    Checkpoints,
    TrainState,
    classification_loss,
    create,
    fingerprint,
    linen_apply,
    make_train_step,
    stacked,
)

_WEIGHT, _RATE, _RANDOM = "weight_rewinding", "rate_rewinding", "random_reinit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lottery(Training):
    """The settings."""

    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of every round; its rate falls over all epochs."""
    rounds: int = 6
    """Of pruning, after the dense one."""
    fraction: float = 0.5
    """Removed each round, of the weights that are left in all layers together."""
    rewind_epochs: int = 1
    """The epoch that is gone back to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("Lottery: fraction", self.fraction)
        with collect(f"Lottery {self.name!r}") as problems:
            if not self.rounds >= 1:
                problems.append(f"rounds: must be at least 1; got {self.rounds}")
            if not 0 <= self.rewind_epochs < self.epochs:
                problems.append(f"rewind_epochs: must be in 0 to {self.epochs - 1}; got {self.rewind_epochs}")


class Tournament:
    """All rounds of all branches, every seed in one program.

    Args:
      config: the settings.
      seeds: of the runs.
      run_dir: gets a JSON file for each branch and round, and checkpoints.
      dataset: loaded.
    """

    def __init__(self, config: Lottery, seeds: Sequence[int], run_dir: Path, dataset: Dataset) -> None:
        self.config, self.seeds, self.run_dir, self.dataset = config, tuple(seeds), run_dir, dataset
        self._apply = linen_apply(config.model)
        self.measure = Measure(self._apply, dataset)
        self._tx = config.optimizer.build(config.steps(dataset, config.epochs))
        self._transform = fixed_masks({})  # the masks are in its state
        self._next = jax.jit(jax.vmap(partial(next_masks, fraction=config.fraction)))
        self._step = make_train_step(classification_loss(self._apply), self._tx, self._transform)

    def run(self, *, resume: bool) -> list[Result]:
        """Run all rounds that are missing; return all results."""
        begin, first = self._begin()
        results: list[Result] = []
        with Checkpoints(self.run_dir / "checkpoints", run=fingerprint(to_json(self.config))) as checkpoints:
            done = checkpoints.latest_step
            trained = {_WEIGHT: first, _RATE: first}
            if resume and done is not None:
                trained, extra = checkpoints.restore(trained)
                results = extra["results"]
            for number in range(0 if done is None else done + 1, self.config.rounds + 1):
                trained, new = self._round(number, begin, first, trained)
                results += new
                checkpoints.save(number, trained, {"results": results})
        for result in results:
            save_result(self.run_dir / "rows" / f"{result['row']}-{100 * result['sparsity']:.2f}.json", result)
        return results

    def _begin(self) -> tuple[TrainState, TrainState]:
        """Return the states at initialisation and at the rewinding point, under masks that hide nothing."""
        config = self.config

        def dense(params: PyTree, model_state: PyTree, key: Array) -> TrainState:
            masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in paths.select(params, paths.matrices).items()}
            return create(params, model_state, self._tx, fixed_masks(masks), key)

        begin = members.start(config, self.dataset, dense, self.seeds)
        if config.rewind_epochs == 0:
            return begin, begin
        return begin, self._train(begin, range(config.rewind_epochs), "to the rewinding point")

    def _train(self, state: TrainState, epochs: range, name: str, history: History | None = None) -> TrainState:
        mine = jax.tree.map(jnp.copy, state)  # what is trained is donated, and the rewinding point is needed again
        args = (self.config, self.dataset.train, self._step, mine, self.seeds)
        return members.train(
            *args, epochs=len(epochs), first_epoch=epochs.start, name=name, history=history, run_dir=self.run_dir
        )

    def _round(
        self, number: int, begin: TrainState, first: TrainState, trained: dict[str, TrainState]
    ) -> tuple[dict[str, TrainState], list[Result]]:
        """Train one round of each branch."""
        config = self.config
        sparsity = 1 - (1 - config.fraction) ** number
        if number == 0:
            state, result = self._timed(first, config.rewind_epochs, "dense", sparsity)
            return {_WEIGHT: state, _RATE: state}, [result]
        masks = {branch: self._next(state.params, state.tstate.masks) for branch, state in trained.items()}
        drawn = _draw(jnp.int32(number), begin.key, begin.params, masks[_WEIGHT])
        starts = {
            _WEIGHT: (first, first.params, masks[_WEIGHT], config.rewind_epochs),
            _RATE: (first, trained[_RATE].params, masks[_RATE], config.rewind_epochs),
            _RANDOM: (begin, drawn, masks[_WEIGHT], 0),
        }
        states, results = {}, []
        for branch, (state, params, kept, epoch) in starts.items():
            state = state._replace(params=_rewind(params, kept), tstate=FixedMasksState(kept))
            states[branch], result = self._timed(state, epoch, branch, sparsity)
            results.append(result)
        del states[_RANDOM]
        return states, results

    def _timed(self, state: TrainState, first_epoch: int, branch: str, sparsity: float) -> tuple[TrainState, Result]:
        begun, history = time.perf_counter(), History(self.measure, self._transform)
        state = self._train(state, range(first_epoch, self.config.epochs), f"{branch} {100 * sparsity:.1f} %", history)
        seconds, runs = time.perf_counter() - begun, stacked.apart(state)
        path = self.run_dir / "files" / f"{branch}-{100 * sparsity:.2f}.lepton" if self.config.files else None
        dense, rounds = self.measure.network(runs[0]), self.config.latency_rounds
        result = {
            "row": branch,
            "sparsity": sparsity,
            "seeds": list(self.seeds),
            **history.figures,
            **self.measure.costs(self._transform, runs, dense=dense, rounds=rounds, path=path),
        }
        return state, {**result, "seconds": seconds, "revision": revision()}


_rewind = jax.jit(jax.vmap(rewind))


@jax.jit
def _draw(number: Array, keys: Array, params: PyTree, masks: dict[str, Array]) -> PyTree:
    """Draw every member's kernels anew, as the models' own initialisation does."""
    init = nn.initializers.lecun_normal()
    return jax.vmap(lambda key, p, m: reinitialize(jax.random.fold_in(key, number), p, m, init))(keys, params, masks)
