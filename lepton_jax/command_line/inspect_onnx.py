"""``lepton inspect`` of an ONNX file: what it computes, and what its variables are."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jax.command_line.console import Answer
from lepton_jax.core import paths
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.packed import is_packed, stored_as
from lepton_jax.core.tables import table
from lepton_jax.interchange import from_onnx
from lepton_jax.interchange.onnx.parts import Port, every_node


def inspect_onnx(file: Path) -> Answer:
    """Say what a file has: its inputs and outputs, operators and variables.

    Args:
      file: an ONNX file.

    Raises:
      ArtifactError, ImportError: as `lepton_jax.interchange.from_onnx`.
    """
    model = from_onnx(file)
    function: Any = model.apply
    leaves = paths.flatten(model.variables, is_packed)
    tensors = [
        {"path": path, "name": function.leaves[path].name, "shape": list(leaf.shape), "stored_as": stored_as(leaf)}
        for path, leaf in leaves.items()
    ]
    operators = dict(Counter(node.op for node in every_node(function.graph)).most_common())
    facts: dict[str, Any] = {
        "bytes": file.stat().st_size,
        "operator_set": function.version,
        "inputs": {port.name: _port(port) for port in function.graph.inputs},
        "outputs": list(function.outputs),
        "example": [[str(np.dtype(x.dtype)), *x.shape] for x in model.example],
        "operators": operators,
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in leaves.values()),
    }
    rows = [
        ("variable", "stored as", "shape", "in the file"),
        *((shown(one["path"]), one["stored_as"], "x".join(map(str, one["shape"])), shown(one["name"], 60)) for one in tensors),
    ]
    text = "\n".join([table(rows, left=range(4)), *(f"{name}: {shown(value, 2000)}" for name, value in facts.items())])
    return Answer(facts | {"tensors": tensors}, text)


def _port(port: Port) -> str:
    dims = "?" if port.dims is None else ",".join("?" if n is None else str(n) for n in port.dims)
    return shown(f"{'unknown' if port.dtype is None else port.dtype}[{dims}]")
