"""Files run by the engines that they are made for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option
from lepton_jax.core.extras import import_extra
from lepton_jax.deploy import litert, openvino
from lepton_jax.deploy.taken import taken

Activations = Literal["float32", "int8"]


def session(
    file: str | os.PathLike[str] | bytes,
    *,
    threads: int = 1,
    optimized: bool = True,
    activations: Activations = "float32",
    name: str = "deploy",
) -> Any:
    """Return ONNX Runtime's session of a file, on the CPU.

    Args:
      file: its path, or its bytes.
      threads: how many it takes; they do not spin, so that processor time is the work's.
      optimized: whether the engine rewrites the graph as it sees fit; else it runs the file's operations one by one.
      activations: as for `runner`.
      name: of the function that asks, for errors.

    Raises:
      ImportError: if onnxruntime is not installed.
      ArtifactError: if the engine does not take the file.
    """
    onnxruntime = import_extra("onnxruntime", "deploy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if activations == "float32":
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = file if isinstance(file, bytes) else os.fspath(file)
    with taken("ONNX Runtime", file, name):
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _wide(one: np.ndarray) -> np.ndarray:
    """Integers as files of other frameworks have them, which jax holds in 32 bits."""
    return one.astype(np.int64) if one.dtype == np.int32 else one


Engine = Literal["onnxruntime", "openvino", "litert"]


@checked
def runner(
    file: str | os.PathLike[str] | bytes,
    *,
    engine: Engine | None = None,
    threads: int = 1,
    optimized: bool = True,
    activations: Activations = "float32",
    name: str = "deploy",
) -> Callable[..., list[np.ndarray]]:
    """Return a file as a function of its inputs, that gives the list of its outputs.

    Args:
      file: its path, or its bytes.
      engine: "onnxruntime" or "openvino" for a file of ONNX, "litert" for one of LiteRT; None: ONNX Runtime, LiteRT.
      threads: how many the engine takes.
      optimized: whether ONNX Runtime rewrites the graph before it runs it, as it does by default.
      activations: what meets weights that a file has as ``DequantizeLinear`` before a ``MatMul``, as `interchange.to_onnx` and
        others write them: "float32", as the file says; or "int8", as ONNX Runtime does if nothing is said: it rounds them to
        eight bits, by 0.6 % of their size, and is faster. One row by 1024 x 1024: 3 times with weights of four bits, 40 times
        with eight; 16 rows: 2 and 10 times. Files of `save` and `place` say themselves what is rounded: there it makes no
        difference.
      name: of the function that asks, for errors.

    Raises:
      ImportError: if the engine is not installed.
      ArtifactError: if the engine does not take the file.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from lepton_jax import Model, deploy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     deploy.save(Model(lambda v, x: x @ v, jnp.eye(2), (jnp.ones((1, 2)),)), f"{folder}/m.onnx")
      ...     run = deploy.runner(f"{folder}/m.onnx")
      >>> run(jnp.array([[3.0, 4.0]]))[0].tolist()
      [[3.0, 4.0]]
    """
    if engine is None:
        engine = "litert" if _is_litert(file) else "onnxruntime"
    check_option(f"{name}: engine", engine, Engine)
    check_option(f"{name}: activations", activations, Activations)
    if engine == "onnxruntime":
        run = _in_onnxruntime(session(file, threads=threads, optimized=optimized, activations=activations, name=name))
    else:
        run = (litert if engine == "litert" else openvino).runner(file, threads=threads, name=name)
    return lambda *inputs: run(*flat(inputs))


def _in_onnxruntime(made: Any) -> Callable[..., list[np.ndarray]]:
    ports = made.get_inputs()

    def run(*leaves: np.ndarray) -> list[np.ndarray]:
        given = zip(ports, leaves, strict=True)
        return made.run(None, {port.name: _wide(one) if port.type == "tensor(int64)" else one for port, one in given})

    return run


def _is_litert(file: str | os.PathLike[str] | bytes) -> bool:
    return file[4:8] == b"TFL3" if isinstance(file, bytes) else os.fspath(file).endswith(".tflite")


def flat(inputs: Sequence[Any]) -> list[np.ndarray]:
    """Inputs as an engine takes them: the arrays of their trees, in the types of jax."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tuple(inputs))]
    return [leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False) for leaf in leaves]
