"""What is measured of trained runs: errors, non-zeros, bytes."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import account, identity, pack, paths, save
from lepton_jax.data import Dataset, eval_batches
from lepton_jax.training import ModelApply, TrainState, make_evaluate
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, PyTree

_EVAL_BATCH = 1000


class Measure:
    """Measures runs of one model on one data set.

    Args:
      apply: the model.
      dataset: its test split and, if there is one, its validation split.
    """

    def __init__(self, apply: ModelApply, dataset: Dataset) -> None:
        self._apply = apply
        self._image = jnp.asarray(dataset.test.images[:1])
        splits = {"error": dataset.test, "validation_error": dataset.validation}
        # Of parameters as they are seen, so that evaluation is compiled once for all transforms.
        self._evaluate = {
            name: make_evaluate(apply, identity(), eval_batches(split, min(_EVAL_BATCH, len(split))))
            for name, split in splits.items()
            if len(split)
        }

    def __call__(self, transform: Transform, runs: Sequence[TrainState]) -> dict[str, Any]:
        """Return errors, non-zeros of all parameters, and the sparsity of the kernels, each a list by run."""
        views = [_view(transform.view, run.params, run.tstate) for run in runs]
        as_seen = [run._replace(params=view, tstate=()) for run, view in zip(runs, views)]
        figures: dict[str, Any] = {
            name: [evaluate(run)["error"] for run in as_seen] for name, evaluate in self._evaluate.items()
        }
        seen = jax.device_get(views)
        kernels = [list(paths.select(params, paths.matrices).values()) for params in seen]
        figures["nonzeros"] = [nonzeros(jax.tree.leaves(params)) for params in seen]
        figures["reached"] = [1 - nonzeros(some) / sum(leaf.size for leaf in some) for some in kernels]
        return figures

    def file_bytes(self, transform: Transform, run: TrainState, path: Path) -> int:
        """Save one run as a file, and count the bytes that are not its program."""
        packed = pack(transform, run.params, run.tstate)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, partial(_logits, self._apply), {"params": packed, **run.model_state}, self._image)
        counted = account(path)
        return counted.total - counted.program


@partial(jax.jit, static_argnums=0)
def _view(view: Callable[[PyTree, Any], PyTree], params: PyTree, tstate: Any) -> PyTree:
    return view(params, tstate)


def best_errors(history: Sequence[dict[str, Any]]) -> list[float]:
    """Return each seed's test error after the epoch in which its validation error was least; without one, its last."""
    if "validation_error" not in history[0]:
        return list(history[-1]["error"])
    places = np.argmin([figures["validation_error"] for figures in history], axis=0)
    return [float(history[place]["error"][seed]) for seed, place in enumerate(places)]


def nonzeros(leaves: Sequence[np.ndarray]) -> int:
    """Count what is not zero.

    Example:
      >>> nonzeros([np.array([1.0, 0.0]), np.zeros(3)])
      1
    """
    return sum(int(np.count_nonzero(leaf)) for leaf in leaves)


def _logits(apply: ModelApply, variables: PyTree, images: Array) -> Array:
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return apply(variables["params"], rest, images, train=False, key=None)[0]
