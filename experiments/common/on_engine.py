"""What a compressed network gains on ONNX Runtime: bytes of its file, and its time over the dense network's file."""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import deployed
from lepton_jax import ArtifactError, Model, deploy, unpack
from lepton_jax.core.typing import PyTree
from lepton_jax.training import ModelApply


def on_engine(
    dense: deployed.Network, apply: ModelApply, packed: PyTree, images: np.ndarray, *, int8: bool, rounds: int
) -> dict[str, Any]:
    """Return a network's file and its time on one core, in the common form of results; nothing where ONNX Runtime is absent.

    Args:
      dense: what it is compared with, in float32.
      apply: the model.
      packed: its variables.
      images: some, to calibrate and to run on.
      int8: whether activations and weights are placed in int8; else the packed variables are saved as they are.
      rounds: of `deploy.gate`.

    Returns:
      ``onnx_bytes``, of the file; ``onnx_latency_ratio``, processor time over the dense file's, by batch. For a network
      that has no form there, ``onnx_refused``, why.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return {}
    example = jnp.asarray(images[:1])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("dense.onnx", "row.onnx")]
        try:
            deploy.save(Model(partial(deployed.logits, dense[0]), dense[1], (example,)), files[0])
            if int8:
                model = Model(partial(deployed.logits, apply), unpack(packed), (example,))
                deploy.place(model, [jnp.asarray(some) for some in _batches(images)]).save(files[1])
            else:
                deploy.save(Model(partial(deployed.logits, apply), packed, (example,)), files[1])
            runs = [deploy.runner(file) for file in files]
            ratios = {str(batch): _ratio(runs, images, batch, rounds) for batch in deployed.BATCHES}
        except (ValueError, ArtifactError) as error:
            return {"onnx_refused": str(error).splitlines()[0][:200]}
        return {"onnx_bytes": files[1].stat().st_size, "onnx_latency_ratio": ratios}


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + 32] for start in range(0, min(len(images), 128), 32)]


def _ratio(runs: Sequence[Callable[..., Any]], images: np.ndarray, batch: int, rounds: int) -> float:
    x = np.resize(images[:batch], (batch, *images.shape[1:]))
    names = ("dense", "row")
    measured = deploy.gate({name: partial(run, x) for name, run in zip(names, runs, strict=True)}, max(rounds, 3))
    return 1 / measured.ratios["row"][0]
