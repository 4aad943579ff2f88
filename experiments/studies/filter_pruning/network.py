"""A network with fewer filters: its functions, tuning, size and speed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import measuring, resnet20, unfinished
from lepton_jax import account, identity, save
from lepton_jax.core.timing import ratio
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.data import Split
from lepton_jax.graph import cost
from lepton_jax.models import ResNetCifar
from lepton_jax.pruning.channels import Plan
from lepton_jax.training import FitSettings, TrainState, classification_loss, create, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings of training after the cut."""

    epochs: int
    steps: int
    """Of one epoch."""
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning gave."""

    variables: PyTree
    errors: list[float]
    """On test images, after every epoch."""

    @property
    def nonzeros(self) -> int:
        """Of all parameters."""
        return measuring.nonzeros(jax.tree.leaves(jax.device_get(self.variables["params"])))


class _Errors:
    """Measures the error after every epoch."""

    def __init__(self, error: Callable[[TrainState], float]) -> None:
        self._error = error
        self.epochs: list[dict[str, Any]] = []

    def __call__(self, state: TrainState) -> dict[str, Any]:
        return {"error": self._error(state)}


class Network:
    """A network cut by a plan; its functions are compiled once for all seeds that share it.

    Args:
      made: what is removed.
      model: the dense network.
      variables: its parameters and batch statistics.
      tuning: how it is trained.
      difference: the largest one of masked and shrunk outputs, as verified.

    Attributes:
      variables: of the smaller network, before tuning.
      predict: ``(variables, images) -> logits``.
    """

    def __init__(self, made: Plan, model: ResNetCifar, variables: PyTree, tuning: Tuning, difference: float) -> None:
        self.variables = jax.jit(made.shrink)(variables)  # leaf by leaf it would be dozens of small programs
        self.tuning, self.difference = tuning, difference
        self.predict: Callable[[PyTree, Array], Array] = jax.jit(made.rewrite(model.apply))
        self._learn = made.rewrite(partial(_train_mode, model))
        self._tx = resnet20.momentum(tuning.learning_rate, tuning.epochs * tuning.steps)
        self._step = make_train_step(classification_loss(self._apply), self._tx, identity())

    def error(self, variables: PyTree, split: Split) -> float:
        """Return the fraction of images classified wrongly."""
        return 1 - resnet20.count_right(self.predict, variables, split) / len(split)

    def tune(self, train: Split, test: Split, seed: int, name: str, run_dir: Path) -> Tuned:
        """Train from the cut on, and evaluate after every epoch."""
        params, rest = self.variables["params"], {"batch_stats": self.variables["batch_stats"]}
        state = create(params, rest, self._tx, identity(), jax.random.key(seed))
        history = _Errors(lambda state: self.error(_variables(state), test))
        tuning = self.tuning
        batch_at = resnet20.tuning_batches(train, steps=tuning.steps, batch_size=tuning.batch_size, seed=seed)
        args = (state, self._step, batch_at, FitSettings.by_epochs(tuning.epochs, tuning.steps))
        state = unfinished.train(*args, name=name, seeds=[seed], history=history, run_dir=run_dir)
        return Tuned(variables=_variables(state), errors=[figures["error"] for figures in history.epochs])

    def size(self, variables: PyTree, image: np.ndarray, path: Path) -> dict[str, int]:
        """Save the network as a file; return parameters, multiply-accumulates, and the file's bytes without its program."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, self.predict, variables, image)
        counted = account(path)
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
            "macs": cost(self.predict, variables, image).macs,
            "file_bytes": counted.total - counted.program,
        }

    def latency(self, dense: Callable[..., Any], variables: PyTree, images: np.ndarray, rounds: int) -> float:
        """Return the time of a call in units of the dense network's, both compiled, called in turn."""
        held = jax.device_put(images)
        return ratio(partial(self.predict, self.variables, held), partial(dense, variables, held), rounds=rounds)

    def _apply(
        self, params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        variables = {"params": params, **model_state}
        return self._learn(variables, inputs) if train else (self.predict(variables, inputs), model_state)


def _variables(state: TrainState) -> PyTree:
    return {"params": state.params, **state.model_state}


def _train_mode(model: ResNetCifar, variables: PyTree, images: Array) -> Any:
    """Logits, and updated batch statistics."""
    return model.apply(variables, images, train=True, mutable=["batch_stats"])
