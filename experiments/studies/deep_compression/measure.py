"""What is reported of a trained stage: its file, its error, its size, its speed."""

import dataclasses
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.cli import ROOT
from experiments.common.config import Config
from experiments.common.deployed import BATCHES, logits
from experiments.studies.deep_compression.phases import EVAL_BATCH, Stage
from lepton_jax import load, pack, save
from lepton_jax.artifact import Account, Artifact
from lepton_jax.core.timing import ratio
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import PyTree
from lepton_jax.data import Split
from lepton_jax.graph import cost
from lepton_jax.training import linen_apply


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Args:
      name: of the stage.
      error: fraction of the test split that is answered wrongly.
      account: of its file.
      latency: dense time over this one's, by batch size; more is faster.
    """

    name: str
    error: float
    account: Account
    latency: dict[int, float]


class Meter:
    """Measure the stages of one run, each against the first, which is the dense one.

    Args:
      config: the experiment.
      test: the split that nothing was chosen on.
    """

    def __init__(self, config: Config, test: Split) -> None:
        self.rows: list[Row] = []
        self._apply = partial(logits, linen_apply(config.model))
        self._jitted = jax.jit(self._apply)
        self._test = test
        self._dense: PyTree = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, the same in every row: zeros are multiplied too."""
        return cost(self._apply, self._dense, self._test.images[:1]).macs

    def add(self, stage: Stage, path: Path) -> np.ndarray:
        """Save a stage as a file, add its row, and return its logits on the test split."""
        state = stage.state
        seen, packed = jax.jit(partial(_view_and_pack, stage.transform))(state.params, state.tstate)
        variables, packed = ({"params": params, **state.model_state} for params in (seen, packed))
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, self._apply, packed, jnp.asarray(self._test.images[:1]))
        if self._dense is None:
            self._dense = variables
        outputs = self._outputs(variables)
        self._add_row(stage.name, outputs, path)
        return outputs

    def add_file(self, outputs: np.ndarray) -> None:
        """Add the row of the last stage's file, whose logits were computed elsewhere."""
        self.rows.append(dataclasses.replace(self.rows[-1], name="file", error=self._error(outputs)))

    def _outputs(self, variables: PyTree) -> np.ndarray:
        """Return the logits of all test images, in the batches that `fresh_outputs` uses too."""
        images = self._test.images
        starts = range(0, len(images), EVAL_BATCH)
        return np.concatenate([np.asarray(self._jitted(variables, images[start : start + EVAL_BATCH])) for start in starts])

    def _add_row(self, name: str, outputs: np.ndarray, path: Path) -> None:
        model = load(path)
        self.rows.append(Row(name=name, error=self._error(outputs), account=model.account(), latency=self._latency(model)))

    def _error(self, outputs: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(-1) != self._test.labels))

    def _latency(self, model: Artifact) -> dict[int, float]:
        """Time a file's model against the dense one, both compiled by XLA on this machine; calls in pairs."""
        ratios = {}
        for batch in BATCHES:
            x = jnp.asarray(np.resize(self._test.images, (batch, *self._test.images.shape[1:])))
            rounds = max(50, 200 // batch)  # calls of microseconds need more
            ratios[batch] = ratio(partial(self._jitted, self._dense, x), partial(model, x), rounds=rounds)
        return ratios


def _view_and_pack(transform: Transform, params: PyTree, tstate: Any) -> tuple[PyTree, PyTree]:
    return transform.view(params, tstate), pack(transform, params, tstate)


def fresh_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """Return a file's logits, computed in a new process that has none of the model's code.

    Raises:
      ValueError: if that process fails; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, wanted = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(given, images)
        module = "experiments.studies.deep_compression.fresh"
        command = [sys.executable, "-m", module, *map(str, (path.resolve(), given, wanted)), "--batch", str(EVAL_BATCH)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{path} could not be loaded and run in a process of its own:\n{done.stderr}")
        return np.load(wanted)
