"""Files run by LiteRT, once TensorFlow Lite."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.core.extras import import_extra
from lepton_jax.deploy.taken import taken


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
    with taken("LiteRT", file, name):
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        interpreter = litert.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
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
    signature = interpreter.get_signature_runner()
    inputs, outputs = (
        [named[f"{word}_{number}"] for number in range(len(named))]
        for word, named in (("input", signature.get_input_details()), ("output", signature.get_output_details()))
    )
    shapes = [tuple(port["shape"]) for port in inputs]

    def run(*leaves: np.ndarray) -> list[np.ndarray]:
        if len(leaves) != len(inputs):
            raise ValueError(f"{name}: the file takes {len(inputs)} inputs; got {len(leaves)}.")
        if shapes != [leaf.shape for leaf in leaves]:
            shapes[:] = [leaf.shape for leaf in leaves]
            for leaf, port in zip(leaves, inputs):
                interpreter.resize_tensor_input(port["index"], leaf.shape)
            interpreter.allocate_tensors()
        for leaf, port in zip(leaves, inputs):
            interpreter.set_tensor(port["index"], _codes(leaf, port))
        interpreter.invoke()
        return [_numbers(interpreter.get_tensor(port["index"]), port) for port in outputs]

    return run


def ports(file: str | os.PathLike[str] | bytes, *, name: str = "deploy") -> list[tuple[tuple[int, ...], np.dtype]]:
    """Return the shapes and dtypes of a file's inputs, of what codes stand for where they are in eight bits.

    Args:
      file: its path, or its bytes.
      name: of the function that asks, for errors.

    Raises:
      ImportError, ArtifactError: as `open_file`.
    """
    named = open_file(file, name=name).get_signature_runner().get_input_details()
    found = [named[f"input_{number}"] for number in range(len(named))]
    return [
        (tuple(map(int, port["shape"])), np.dtype(np.float32 if port["quantization"][0] else port["dtype"])) for port in found
    ]


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
