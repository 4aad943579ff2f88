"""What a compressed model really costs: its file written, and run by the engine."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path as File
from typing import Any, NamedTuple

from lepton_jax.artifact import FixedBatchWarning, save
from lepton_jax.core.typing import PyTree
from lepton_jax.deploy import gate, runner
from lepton_jax.deploy import save as deploy
from lepton_jax.graph.trace import Apply
from lepton_jax.pruning.channels import Plan

_ROUNDS = 5
MEASURED = ("file_bytes", "latency")
"""Limits that only a finished model can be held to."""


class _Model(NamedTuple):
    apply: Apply
    variables: PyTree
    example: tuple[Any, ...]


class Deployed:
    """Writes packed variables of one model as files, and measures these.

    Args:
      apply: ``apply(variables, *inputs)``.
      inputs: of one call.

    Example:
      >>> import jax.numpy as jnp
      >>> deployed = Deployed(lambda v, x: x @ v["w"], (jnp.ones((1, 8)),))
      >>> small, large = (deployed.file_bytes({"w": w}) for w in (jnp.zeros((8, 8)), jnp.arange(64.0).reshape(8, 8)))
      >>> small < large
      True
    """

    def __init__(self, apply: Apply, inputs: tuple[Any, ...]) -> None:
        self._apply, self._inputs = apply, inputs

    def file_bytes(self, packed: PyTree, channels: Plan | None = None) -> int:
        """Return the size of the `.lepton` file: tensors, program, manifest and head; of what a plan leaves."""
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FixedBatchWarning)
            file = File(folder) / "model.lepton"
            save(file, self._left(channels), packed, *self._inputs)
            return file.stat().st_size

    def latency(self, packed: PyTree, channels: Plan | None = None) -> float:
        """Return the seconds of processor time that ONNX Runtime takes for a call, on one core; see `lepton_jax.deploy.gate`.

        Raises:
          ImportError: if the engine is not installed; says how to.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = File(folder) / "model.onnx"
            deploy(_Model(self._left(channels), packed, self._inputs), file)
            run = runner(file.read_bytes(), name="Budget: latency")
        return gate({"model": partial(run, *self._inputs)}, rounds=_ROUNDS).seconds["model"]

    def costs(self, packed: PyTree, names: Mapping[str, float], channels: Plan | None = None) -> dict[str, float]:
        """Return what is limited, of the names in `MEASURED`."""
        return {name: getattr(self, name)(packed, channels) for name in MEASURED if name in names}

    def _left(self, channels: Plan | None) -> Apply:
        return self._apply if channels is None else channels.rewrite(self._apply)
