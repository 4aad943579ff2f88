"""Models of PyTorch, by way of the ONNX file that its own exporters write."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option, one_line
from lepton_jax.core.extras import import_extra
from lepton_jax.core.kinds import described
from lepton_jax.interchange.onnx import from_onnx
from lepton_jax.simple.model import Model

_Exporter = Literal["dynamo", "legacy"]
_BATCH = "batch"
_LARGEST = 1 << 30  # bytes of weights in one protobuf message; more are written beside it


@checked
def from_torch(module: Any, *example: Any, exporter: str | None = None) -> Model:
    """Make a model of a PyTorch module, in evaluation mode, by ``torch.onnx.export`` and `from_onnx`.

    Variables have the names of the module's state dict: ``layer1.0.conv1.weight`` is ``params/layer1/0/conv1/weight``. Layouts
    are those of `from_onnx`: kernels (height, width, in, out) and (in, out); activations stay as PyTorch has them. The first
    axis of every input may have any length, if the exporter finds that it can. The module is not changed, and nothing of
    PyTorch is needed afterwards.

    Args:
      module: a `torch.nn.Module`.
      example: inputs, tensors or arrays.
      exporter: "dynamo" (needs onnxscript), or "legacy", which traces; None: the first that succeeds.

    Raises:
      ImportError: if onnx is not installed; says how to.
      TypeError: for what is no module of PyTorch.
      ValueError: if no exporter can write it; says why.
      ArtifactError: as `from_onnx`.

    Example:
      >>> from_torch({"weight": 1.0})
      Traceback (most recent call last):
      ...
      TypeError: from_torch: module must be a torch.nn.Module; got a dict.
    """
    # Where PyTorch was never imported, nothing can be a module of it.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(module, torch.nn.Module):
        raise TypeError(f"from_torch: module must be a torch.nn.Module; got {described(module)}.")
    import_extra("onnx", "onnx")
    if not example:
        raise ValueError("from_torch: give examples of the inputs: from_torch(module, x).")
    if exporter is not None:
        check_option("from_torch: exporter", exporter, _Exporter)
    inputs = tuple(one if isinstance(one, torch.Tensor) else torch.as_tensor(np.array(one)) for one in example)
    shown = tuple(jnp.asarray(one.detach().cpu().numpy()) for one in inputs)
    failed = []
    with tempfile.TemporaryDirectory() as folder, _evaluating(torch, module):
        for name in [exporter] if exporter else _there():
            path = os.path.join(folder, f"{name}.onnx")
            try:
                with warnings.catch_warnings(), contextlib.redirect_stdout(None):
                    warnings.simplefilter("ignore")  # of the exporters, on what is theirs
                    _EXPORT[name](torch, module, _longer(torch, inputs), path)
            except Exception as error:
                failed.append(f"{name}: {one_line(error)}")
                continue
            model = from_onnx(path, *shown)
            return dataclasses.replace(model, example=shown)
    raise ValueError(f"from_torch: PyTorch cannot write {type(module).__name__} as ONNX: {'; '.join(failed)}.")


def _there() -> list[str]:
    return (["dynamo"] if importlib.util.find_spec("onnxscript") else []) + ["legacy"]


def _dynamo(torch: Any, module: Any, inputs: tuple[Any, ...], path: str) -> None:
    axes = tuple({0: torch.export.Dim.AUTO} if one.ndim else None for one in inputs)
    large = sum(one.numel() * one.element_size() for one in module.state_dict().values()) > _LARGEST
    settings = {"dynamo": True, "optimize": False, "verbose": False, "external_data": large}
    torch.onnx.export(module, inputs, path, dynamic_shapes=axes, **settings)


def _legacy(torch: Any, module: Any, inputs: tuple[Any, ...], path: str) -> None:
    names = [f"input_{number}" for number in range(len(inputs))]
    axes = {name: {0: _BATCH} for name, one in zip(names, inputs) if one.ndim}
    # In its own evaluation mode the exporter would fold batch norms, and their names would be lost.
    settings = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE, "dynamo": False}
    torch.onnx.export(module, inputs, path, input_names=names, dynamic_axes=axes, **settings)
    _apart(path, module)


def _apart(path: str, module: Any) -> None:
    """Give tensors back that the exporter wrote once, since their numbers were equal: each is a variable of its own."""
    import onnx

    proto = onnx.load(path)
    graph, own = proto.graph, module.state_dict()
    there = {one.name: one for one in graph.initializer}
    for node in [one for one in graph.node if one.op_type == "Identity"]:
        of, name = node.input[0], node.output[0]
        if of in there and of in own and name in own and own[of].data_ptr() != own[name].data_ptr():
            graph.initializer.add().CopyFrom(there[of])
            graph.initializer[-1].name = name
            graph.node.remove(node)
    onnx.save(proto, path)


_EXPORT = {"dynamo": _dynamo, "legacy": _legacy}


def _longer(torch: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of two examples where there is one: a length of one would be taken for a constant."""
    alone = all(one.shape[0] == 1 for one in inputs if one.ndim)
    return tuple(torch.cat([one, one]) if alone and one.ndim else one for one in inputs)


@contextlib.contextmanager
def _evaluating(torch: Any, module: Any) -> Iterator[None]:
    """The module in evaluation mode, without operators that have no form in ONNX; then each part as it was."""
    modes = {part: part.training for part in module.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for part, mode in modes.items():
            part.training = mode
