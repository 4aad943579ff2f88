"""What is measured of trained runs: errors, non-zeros, bytes, and what they cost where they run."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.deployed import Network, deployed, file_bytes
from experiments.common.objectives import Classes
from lepton_jax import pack
from lepton_jax.core import paths
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import PyTree
from lepton_jax.data import Dataset
from lepton_jax.training import ModelApply, TrainState, stacked

_AS_SPARSE = 1.01


class Measure:
    """Measures runs of one model on one data set.

    Args:
      apply: the model.
      dataset: its test split and, if there is one, its validation split.
      objective: what it is judged by.
    """

    def __init__(self, apply: ModelApply, dataset: Dataset, objective: Classes = Classes()) -> None:
        self.apply = apply
        self._images = dataset.test.images
        splits = {"error": dataset.test, "validation_error": dataset.validation}
        # Of parameters as they are seen, so that evaluation is compiled once for all transforms.
        self._evaluate = {name: objective.judge(apply, split) for name, split in splits.items() if len(split)}

    def __call__(self, transform: Transform, runs: Sequence[TrainState]) -> dict[str, Any]:
        """Return errors, non-zeros of all parameters, and the sparsity of the kernels, each a list by run."""
        as_seen = [self.seen(transform, run) for run in runs]
        figures: dict[str, Any] = {
            name: [evaluate(run)["error"] for run in as_seen] for name, evaluate in self._evaluate.items()
        }
        seen = jax.device_get([run.params for run in as_seen])
        kernels = [list(paths.select(params, paths.matrices).values()) for params in seen]
        figures["nonzeros"] = [nonzeros(jax.tree.leaves(params)) for params in seen]
        figures["reached"] = [1 - nonzeros(some) / sum(leaf.size for leaf in some) for some in kernels]
        return figures

    def seen(self, transform: Transform, run: TrainState) -> TrainState:
        """Return a run with its parameters as the model sees them."""
        return run._replace(params=_view(transform.view, run.params, run.tstate), tstate=())

    def network(self, run: TrainState) -> Network:
        """Return the model with a run's parameters as they are trained, for others to be compared with."""
        return self.apply, {"params": run.params, **run.model_state}

    def costs(
        self, transform: Transform, runs: Sequence[TrainState], *, dense: Network, rounds: int, path: Path | None
    ) -> dict[str, Any]:
        """Return what packed runs cost.

        Args:
          transform: of their parameters.
          runs: a seed each.
          dense: what times are compared with.
          rounds: timed calls of each network.
          path: of a file to save the first run as; None: none is.

        Returns:
          As `deployed`, with ``file_bytes``, those of the file that are not its program, if there is one.
        """
        packed = [packed_variables(transform, run) for run in runs]
        figures = deployed(dense, self.apply, packed, self._images, rounds=rounds)
        return figures if path is None else {**figures, "file_bytes": self.file_bytes(packed[0], path)}

    def file_bytes(self, packed: PyTree, path: Path) -> int:
        """Save packed variables as a file, and count the bytes that are not its program."""
        return file_bytes(self.apply, packed, self._images, path)


class History:
    """Measures the same runs after every epoch; the figures, in the common form of results, are kept in `epochs`.

    Args:
      measure: of their model.
      transform: of their parameters.
      seen: makes of stacked states those that are measured.
    """

    def __init__(
        self, measure: Measure, transform: Transform, seen: Callable[[TrainState], TrainState] = lambda state: state
    ) -> None:
        self.measure, self.transform, self._seen = measure, transform, seen
        self.epochs: list[dict[str, Any]] = []
        self._begun = self._ended = time.perf_counter()

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """Measure stacked states."""
        figures = self.measure(self.transform, stacked.apart(self._seen(state)))
        self._ended = time.perf_counter()
        return figures

    @property
    def seconds(self) -> float:
        """From the beginning to the last epoch's end."""
        return self._ended - self._begun

    @property
    def figures(self) -> dict[str, Any]:
        """Those of the last epoch, and ``best_error``, each a list by run."""
        return {**self.epochs[-1], "best_error": best_errors(self.epochs)}


@partial(jax.jit, static_argnums=0)
def _view(view: Callable[[PyTree, Any], PyTree], params: PyTree, tstate: Any) -> PyTree:
    return view(params, tstate)


def packed_variables(transform: Transform, run: TrainState) -> PyTree:
    """Return a run's variables with its parameters packed."""
    return {"params": pack(transform, run.params, run.tstate), **run.model_state}


def best_errors(history: Sequence[dict[str, Any]]) -> list[float]:
    """Return each run's test error after the epoch in which its validation error was least.

    Epochs in which a run had more than 1 % more non-zeros than at its end do not count: while its sparsity rises it is not yet
    the network that its row says. Without validation errors the least test error is returned, a choice made on the test split.

    Example:
      >>> rising = {"error": [0.1], "validation_error": [0.1], "nonzeros": [1000]}
      >>> sparse = {"error": [0.2], "validation_error": [0.3], "nonzeros": [500]}
      >>> best_errors([rising, sparse, {**sparse, "error": [0.3]}])
      [0.2]
    """
    seen = "validation_error" if "validation_error" in history[0] else "error"
    best = []
    for run, nonzeros in enumerate(history[-1]["nonzeros"]):
        there = [figures for figures in history if figures["nonzeros"][run] <= _AS_SPARSE * nonzeros]
        best.append(float(min(there, key=lambda figures: figures[seen][run])["error"][run]))
    return best


def nonzeros(leaves: Sequence[np.ndarray]) -> int:
    """Count what is not zero.

    Example:
      >>> nonzeros([np.array([1.0, 0.0]), np.zeros(3)])
      1
    """
    return sum(int(np.count_nonzero(leaf)) for leaf in leaves)
