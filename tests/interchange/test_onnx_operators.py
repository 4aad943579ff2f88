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

from lepton_jax.core.packed import dense
from lepton_jax.interchange.onnx.load import imported
from lepton_jax.interchange.onnx.read import parsed
from lepton_jax.interchange.onnx.rules import RULES
from lepton_jax.interchange.onnx.tensors import Folder
from lepton_jax.interchange.onnx.weights import on_host


def examples() -> dict[str, Any]:
    """The first example of each operator of ours whose values are all arrays of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found: dict[str, Any] = {}
    for case in sorted(cases, key=lambda case: case.name):
        nodes, (inputs, outputs) = case.model.graph.node, case.data_sets[0]
        arrays = all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in (*inputs, *outputs))
        if len(nodes) == 1 and nodes[0].op_type in RULES and arrays and "training" not in case.name:
            found.setdefault(nodes[0].op_type, case)
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("op", EXAMPLES)
def test_the_example_of_the_standard(op: str, tmp_path: Path) -> None:
    case = EXAMPLES[op]
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    inputs, outputs = case.data_sets[0]
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
    assert len(EXAMPLES) > 130
