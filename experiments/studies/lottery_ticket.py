"""Lottery tickets: rounds of pruning, going back and training again, in three branches.

weight_rewinding and rate_rewinding prune what they trained themselves, a fraction of what is left each round; random_reinit
trains the masks of weight_rewinding from new weights. Columns are sparsities of the kernels.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.common import members
from experiments.common.config import Adam, to_json
from experiments.common.measuring import History
from experiments.common.results import Result
from experiments.common.study import Cell, Parts
from experiments.common.training_study import TrainingRunner, TrainingStudy
from experiments.studies.sparsity import cell, report
from lepton_jax.core import paths
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.pruning.sanity import reinitialize
from lepton_jax.pruning.sparse_training import FixedMasksState, fixed_masks, next_masks, rewind
from lepton_jax.training import (
    Checkpoints,
    TrainState,
    TrainStep,
    classification_loss,
    create,
    fingerprint,
    make_train_step,
    stacked,
)

_WEIGHT, _RATE, _RANDOM = "weight_rewinding", "rate_rewinding", "random_reinit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LotteryTicket(TrainingStudy):
    """The settings."""

    optimizer: Adam = dataclasses.field(default_factory=Adam)
    """Of every round; its rate falls over all epochs."""
    rounds: int = 6
    """Of pruning, after the dense one."""
    fraction: float = 0.5
    """Removed each round, of the weights that are left in all layers together."""
    rewind_epochs: int = 1
    """The epoch that is gone back to."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        check_fraction("LotteryTicket: fraction", self.fraction)
        yield from self.at_least(1, "rounds")
        if not 0 <= self.rewind_epochs < self.epochs:
            yield f"rewind_epochs: must be in 0 to {self.epochs - 1}; got {self.rewind_epochs}"

    def check_rows(self) -> Iterator[str]:
        if self.only:
            yield "only: a round needs those before it, so that all are run"

    @property
    def cells(self) -> list[Cell]:
        """Every branch in every round."""
        return [one for number in range(self.rounds + 1) for one in self.cells_of(number)]

    def cells_of(self, number: int) -> list[Cell]:
        """The branches of a round."""
        branches = (_WEIGHT, _RATE, _RANDOM) if number else ("dense",)
        return [cell(branch, 1 - (1 - self.fraction) ** number, ".2f") for branch in branches]

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Tournament":
        return Tournament(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        return report(results)


class Tournament(TrainingRunner[LotteryTicket]):
    """All rounds of all branches, every seed in one program; what a round left is in a checkpoint."""

    _transform = fixed_masks({})  # the masks are in its state

    @cached_property
    def _tx(self) -> optax.GradientTransformation:
        return self.study.optimizer.build(self.study.steps(self.dataset, self.study.epochs))

    @cached_property
    def _step(self) -> TrainStep:
        return make_train_step(classification_loss(self.apply), self._tx, self._transform)

    def run(self) -> list[Result]:
        """Run all rounds that are missing; return all results."""
        begin, first = self._begin()
        results: list[Result] = []
        with Checkpoints(self.run_dir / "checkpoints", run=fingerprint(to_json(self.study))) as checkpoints:
            done, trained = checkpoints.latest_step, {_WEIGHT: first, _RATE: first}
            if done is not None:
                trained, extra = checkpoints.restore(trained)
                results = extra["results"]
            for number in range(0 if done is None else done + 1, self.study.rounds + 1):
                trained, figures = self._round(number, begin, first, trained)
                results += [self.keep(*one) for one in zip(self.study.cells_of(number), figures, strict=True)]
                checkpoints.save(number, trained, {"results": results})
        return results

    def _begin(self) -> tuple[TrainState, TrainState]:
        """Return the states at initialisation and at the rewinding point, under masks that hide nothing."""

        def dense(params: PyTree, model_state: PyTree, key: Array) -> TrainState:
            masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in paths.select(params, paths.matrices).items()}
            return create(params, model_state, self._tx, fixed_masks(masks), key)

        begin, epochs = members.start(self.study, self.dataset, dense, self.seeds), self.study.rewind_epochs
        return begin, self._copied(begin, range(epochs), "to the rewinding point") if epochs else begin

    def _copied(self, state: TrainState, epochs: range, name: str, history: History | None = None) -> TrainState:
        """Train a copy: what is trained is donated, and the rewinding point is needed again."""
        return self.train(self._step, jax.tree.map(jnp.copy, state), epochs, name, history)

    def _round(
        self, number: int, begin: TrainState, first: TrainState, trained: dict[str, TrainState]
    ) -> tuple[dict[str, TrainState], list[Result]]:
        """Train one round of each branch."""
        late, cells = self.study.rewind_epochs, self.study.cells_of(number)
        if number == 0:
            state, result = self._branch(cells[0], first, late)
            return {_WEIGHT: state, _RATE: state}, [result]
        masks = {name: _next(state.params, state.tstate.masks, self.study.fraction) for name, state in trained.items()}
        drawn = _draw(jnp.int32(number), begin.key, begin.params, masks[_WEIGHT])
        starts = [
            (first, first.params, masks[_WEIGHT], late),
            (first, trained[_RATE].params, masks[_RATE], late),
            (begin, drawn, masks[_WEIGHT], 0),
        ]
        states, results = {}, []
        for one, (state, params, kept, epoch) in zip(cells, starts, strict=True):
            state = state._replace(params=_rewind(params, kept), tstate=FixedMasksState(kept))
            states[one.name], result = self._branch(one, state, epoch)
            results.append(result)
        del states[_RANDOM]
        return states, results

    def _branch(self, one: Cell, state: TrainState, first_epoch: int) -> tuple[TrainState, Result]:
        history, name = History(self.measured, self._transform), f"{one.name} {100 * one.settings['sparsity']:.1f} %"
        state = self._copied(state, range(first_epoch, self.study.epochs), name, history)
        return state, self.figures(one, history, state, self.measured.network(stacked.member(state, 0)))


_rewind = jax.jit(jax.vmap(rewind))


@partial(jax.jit, static_argnums=2)
def _next(params: PyTree, masks: dict[str, Array], fraction: float) -> dict[str, Array]:
    return jax.vmap(partial(next_masks, fraction=fraction))(params, masks)


@jax.jit
def _draw(number: Array, keys: Array, params: PyTree, masks: dict[str, Array]) -> PyTree:
    """Draw every member's kernels anew, as the models' own initialisation does."""
    init = nn.initializers.lecun_normal()
    return jax.vmap(lambda key, p, m: reinitialize(jax.random.fold_in(key, number), p, m, init))(keys, params, masks)
