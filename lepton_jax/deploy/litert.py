"""Files run by LiteRT, once TensorFlow Lite."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.core.errors import ArtifactError, one_line
from lepton_jax.core.extras import import_extra


def open_file(file: str | os.PathLike[str] | bytes, *, threads: int = 1, name: str = "deploy") -> Any:
    """Return LiteRT's interpreter of a file.

    Args:
      file: its path, or its bytes.
      threads: how many it takes.
      name: of the function that asks, for errors.

    Raises:
      ImportError: if ai-edge-litert is not installed.
      ArtifactError: if the engine does not take the file.
    """
    litert = import_extra("ai_edge_litert.interpreter", "litert")
    shown = "the file" if isinstance(file, bytes) else os.fspath(file)
    try:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        interpreter = litert.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    except Exception as error:  # whatever the engine raises
        raise ArtifactError(f"{name}: LiteRT does not take {shown}: {one_line(error)}") from error
    return interpreter


def runner(file: str | os.PathLike[str] | bytes, *, threads: int = 1, name: str = "deploy") -> Callable[..., list[np.ndarray]]:
    """Return a file as a function of its inputs' leaves, that gives the list of its outputs, in float32 where they are codes.

    Args:
      file: its path, or its bytes.
      threads: how many LiteRT takes.
      name: of the function that asks, for errors.

    Raises:
      ImportError, ArtifactError: as `open_file`.
    """
    interpreter = open_file(file, threads=threads, name=name)
    call = interpreter.get_signature_runner()
    ports, outs = call.get_input_details(), call.get_output_details()

    def run(*leaves: np.ndarray) -> list[np.ndarray]:
        given = {f"input_{number}": leaf for number, leaf in enumerate(leaves)}
        if given.keys() != ports.keys():
            raise ValueError(f"{name}: the file takes {len(ports)} inputs; got {len(given)}.")
        made = call(**{port: _codes(leaf, ports[port]) for port, leaf in given.items()})
        return [_numbers(made[f"output_{number}"], outs[f"output_{number}"]) for number in range(len(outs))]

    return run


def _codes(leaf: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """Numbers as an input has them: in its codes, where it is in eight bits."""
    scale, zero_point = port["quantization"]
    if not scale or leaf.dtype == port["dtype"]:
        return leaf
    bounds = np.iinfo(port["dtype"])
    return np.clip(np.rint(leaf / np.float32(scale)) + zero_point, bounds.min, bounds.max).astype(port["dtype"])


def _numbers(leaf: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """What an output stands for."""
    scale, zero_point = port["quantization"]
    return (leaf.astype(np.float32) - zero_point) * np.float32(scale) if scale else leaf
