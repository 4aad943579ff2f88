"""Every operator by the standard's own examples: one of each, as the onnx package brings them with what must come out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.packed import dense
from lepton_jax.interchange.onnx.load import imported
from lepton_jax.interchange.onnx.read import parsed
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.tensors import Folder
from lepton_jax.interchange.onnx.weights import on_host

WHOLE = {"GridSample", "DFT", "STFT", "RoiAlign", "Col2Im", "DeformConv", "TensorScatter"}
"""Operators whose examples are all taken."""
FUNCTIONS = {
    *("AffineGrid", "BlackmanWindow", "CausalConvWithState", "CenterCropPad", "HammingWindow", "HannWindow", "LinearAttention"),
    *("NegativeLogLikelihoodLoss", "RotaryEmbedding", "SoftmaxCrossEntropyLoss", "SwiGLU"),
}
"""Operators that the standard writes as functions of others; Attention has more examples, of which some are drawn."""


def examples() -> dict[str, Any]:
    """The first example of each operator of ours whose values are all arrays of numbers; all of some."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found: dict[str, Any] = {}
    for case in sorted(cases, key=lambda case: case.name):
        nodes, (inputs, outputs) = case.model.graph.node, case.data_sets[0]
        arrays = all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in (*inputs, *outputs))
        if len(nodes) != 1 or not arrays or "training" in case.name:
            continue
        op = nodes[0].op_type
        if op in WHOLE or op == "Attention":
            found[case.name] = case
        elif op in RULES or op in FUNCTIONS:
            found.setdefault(op, case)
    kinds = [name for name, case in found.items() if case.model.graph.node[0].op_type == "Attention"]
    for name in np.random.default_rng(3).permutation(kinds)[16:]:
        del found[name]
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_the_standard(name: str, tmp_path: Path) -> None:
    case = EXAMPLES[name]
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    op, (inputs, outputs) = proto.graph.node[0].op_type, case.data_sets[0]
    given = dict(zip([port.name for port in proto.graph.input], inputs))
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    # What decides a shape is a tensor of the file, as in files of models.
    fixed = on_host(parsed(copy, Folder(tmp_path), 1 << 16).graph) | set(proto.graph.node[0].input[:2] if op == "Loop" else ())
    fixed &= set(given)
    proto.graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in fixed)
    kept = [port for port in proto.graph.input if port.name not in fixed]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    function, variables = imported(parsed(proto, Folder(tmp_path), 1 << 16), op)
    made = jax.jit(function)(dense(variables), *(given[port.name] for port in kept))
    for a, b in zip(made if isinstance(made, tuple) else (made,), outputs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == jax.dtypes.canonicalize_dtype(b.dtype)
        np.testing.assert_allclose(np.asarray(a, np.float64), b.astype(np.float64), rtol=2e-3, atol=1e-5)


def test_most_operators_have_an_example() -> None:
    assert len(EXAMPLES) > 210


def one_node(op: str, shapes: dict[str, tuple[int, ...]], version: int = 23, **attributes: Any) -> Any:
    """A graph of one node."""
    node = onnx.helper.make_node(op, list(shapes), ["y"], **attributes)
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "g", ports, [result])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])


def test_a_sampled_grid_has_the_derivatives_of_differences(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    proto = one_node("GridSample", {"x": (1, 1, 5, 4), "grid": (1, 2, 3, 2)}, mode="linear", padding_mode="border")
    function, variables = imported(parsed(proto, Folder(tmp_path), 1 << 16), "g")
    x, grid = rng.normal(size=(1, 1, 5, 4)).astype(np.float32), rng.uniform(-0.9, 0.9, (1, 2, 3, 2)).astype(np.float32)
    slope = jax.grad(lambda g: function(variables, x, g).sum())(grid)
    for place in [(0, 0, 1, 0), (0, 1, 2, 1)]:
        step = np.zeros_like(grid)
        step[place] = 1e-3
        change = (function(variables, x, grid + step).sum() - function(variables, x, grid - step).sum()) / 2e-3
        np.testing.assert_allclose(slope[place], change, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "says"),
    [
        ("RoiAlign", {"x": (1, 1, 5, 5), "r": (2, 4), "b": (2,)}, {"sampling_ratio": 0}, "no shape is known"),
        ("GridSample", {"x": (1, 1, 5, 5), "g": (1, 2, 2, 2)}, {"mode": "other"}, "there are linear, nearest and cubic"),
        ("RoiAlign", {"x": (1, 1, 5, 5), "r": (2, 4), "b": (2,)}, {"sampling_ratio": 9, "output_height": 2**30}, "may ask for"),
        ("NonMaxSuppression", {"x": (1, 5, 4), "s": (1, 1, 5)}, {}, "no rule for the operators NonMaxSuppression at y"),
        ("Unique", {"x": (5,)}, {}, "Unique at y. How much Unique finds depends on the values.*: cut the file before it"),
    ],
)
def test_what_has_no_shape_is_refused(op: str, shapes: Any, attributes: Any, says: str, tmp_path: Path) -> None:
    def traced() -> None:
        function, variables = imported(parsed(one_node(op, shapes, **attributes), Folder(tmp_path), 1 << 12), "g")
        jax.eval_shape(function, variables, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes.values()))

    with pytest.raises(ArtifactError, match=says):
        traced()
