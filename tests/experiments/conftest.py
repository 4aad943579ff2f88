"""Running the command line inside the test process, on little data."""

import os
import sys
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import deep_compression
from experiments.common.config import Tfds
from lepton_jax.core import paths
from lepton_jax.data import from_arrays
from lepton_jax.interchange.torch_resnet import torch_names
from lepton_jax.models import ResNetCifar

TINY = """
from experiments.common.config import Adam, Config, Digits, Phase
from experiments.common.methods import FakeQuant, Prune, TrainedCodebook
from lepton_jax.models import LeNet300


def get_config():
    return Config(
        name="tiny",
        data=Digits(),
        model=LeNet300(hidden=(12,)),
        phases=(
            Phase(name="dense", epochs=2),
            Phase(name="pruned", epochs=4, transforms=(Prune(sparsity=0.8, interval=2),), l2=1e-4),
            Phase(
                name="quantized",
                epochs=2,
                transforms=(TrainedCodebook(bits=2), FakeQuant(bits=6, select=("*/bias",))),
            ),
        ),
        batch_size=64,
    )
"""


@pytest.fixture(autouse=True)
def unoptimised_processes(monkeypatch):
    """Processes that a test begins compile as it does itself: without most optimisations."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(autouse=True)
def one_batch(monkeypatch):
    """Networks are timed at one size of batch, so that half as many are compiled."""
    monkeypatch.setattr("experiments.common.deployed.BATCHES", (1,))


@pytest.fixture
def tiny(tmp_path):
    """A config file of a run that takes a moment."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture
def run_script(monkeypatch):
    """Run an experiment's command line in this process; return the exit status."""
    # Not the user's own, and for processes that are started a folder a test process: jax writes it in place.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{jax.config.jax_compilation_cache_dir or ''}/of-{os.getpid()}")

    def run(script: ModuleType, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        try:
            script.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def command(run_script):
    """Run ``python -m experiments.deep_compression`` with the given arguments; return the exit status."""
    return partial(run_script, deep_compression)


@pytest.fixture
def small_images(monkeypatch):
    """Images of the data sets' shape, so few that a trial takes a moment."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((192, 28, 28, 1), np.float32), np.arange(192) % 10
    made = from_arrays((images, labels), (images[:40], labels[:40]), num_classes=10, validation=40)
    monkeypatch.setattr(Tfds, "load", lambda self: made)


@pytest.fixture
def published():
    """Draw weights of a network under PyTorch's names and in its layout."""

    def draw(model: ResNetCifar, rng: np.random.Generator) -> dict[str, np.ndarray]:
        template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        leaves, found = paths.flatten(template), {}
        for name, path in torch_names(model).items():
            value = 0.2 * rng.standard_normal(leaves[path].shape, np.float32)
            found[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else 1 + value**2
        return found

    return draw


class Halting:
    """Measures every epoch, and interrupts the training that goes on after the last."""

    def __init__(self, figures, last=3):
        self.epochs, self.calls, self._figures, self._last = [], 0, figures, last

    def __call__(self, state):
        self.calls += 1
        if len(self.epochs) == self._last:
            raise KeyboardInterrupt
        return self._figures(state)


@pytest.fixture
def halting():
    """The class of histories that interrupt a training."""
    return Halting
