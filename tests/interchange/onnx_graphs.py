"""Small ONNX files for tests, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lepton_jax import Model
from lepton_jax.interchange import from_onnx

KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}


def port(name: str, shape: Sequence[Any] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node of names in one text; "-" is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    domain = attributes.pop("domain", "")
    return helper.make_node(op, names, ["" if name == "-" else name for name in outputs.split()], domain=domain, **attributes)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 21,
    functions: Sequence[Any] = (),
    domains: Mapping[str, int] | None = None,
    kinds: Sequence[int] | None = None,
) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, (kinds or [1] * len(outputs))[i], None) for i, name in enumerate(outputs)]
    made = [numpy_helper.from_array(array, name) for name, array in (tensors or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), ports, made)
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*one) for one in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=sets, functions=list(functions), ir_version=10)


def imported(model: onnx.ModelProto, folder: Path, *example: Any) -> Model:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return from_onnx(folder / "m.onnx", *example)


def by_onnxruntime(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    # What is written: fused, products with weights of four bits round the other factor to eight.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip([one.name for one in session.get_inputs()], inputs)))


def as_tuple(out: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, out if isinstance(out, tuple) else (out,)))


def assert_like_onnxruntime(model: onnx.ModelProto, folder: Path, *inputs: np.ndarray, rtol: float = 1e-5) -> Model:
    """Import a file, and compare all its outputs with those of ONNX Runtime, by the norm, shape and dtype."""
    ours = imported(model, folder, *inputs)
    got, want = as_tuple(ours(*inputs)), by_onnxruntime(model, *inputs)
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.shape == b.shape
        assert str(a.dtype) == {"int64": "int32", "float64": "float32"}.get(b.dtype.name, b.dtype.name)
        wide = b.astype(np.float64)
        assert np.linalg.norm(a.astype(np.float64) - wide) <= rtol * max(np.linalg.norm(wide), 1e-6), (a, b)
    return ours
