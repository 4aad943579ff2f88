"""Files of ONNX run by OpenVINO."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lepton_jax.core.extras import import_extra
from lepton_jax.deploy.taken import taken


def runner(file: str | os.PathLike[str] | bytes, *, threads: int = 1, name: str = "deploy") -> Callable[..., list[np.ndarray]]:
    """Return a file as a function of its inputs' leaves, that gives the list of its outputs; on the CPU, in float32 and int8.

    Args:
      file: its path, or its bytes.
      threads: how many OpenVINO takes.
      name: of the function that asks, for errors.

    Raises:
      ImportError: if openvino is not installed.
      ArtifactError: if the engine does not take the file.
    """
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    with _no_telemetry():
        core = import_extra("openvino", "openvino").Core()
        with taken("OpenVINO", file, name):
            model = core.read_model(file if isinstance(file, bytes) else os.fspath(file))
            compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(*leaves: Any) -> list[np.ndarray]:
        if len(leaves) != len(compiled.inputs):
            raise ValueError(f"{name}: the file takes {len(compiled.inputs)} inputs; got {len(leaves)}.")
        made = request.infer(list(leaves), share_inputs=True)
        return [np.array(made[port]) for port in compiled.outputs]

    return run


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """Keep the engine from reporting what it reads: it would fork this process, in which other threads run."""
    absent = "openvino_telemetry" not in sys.modules
    if absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            sys.modules.pop("openvino_telemetry", None)
