"""A model from an ONNX file."""

from __future__ import annotations

import os
from typing import Any

import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError, one_line
from lepton_jax.core.extras import import_extra
from lepton_jax.interchange.names import nested
from lepton_jax.interchange.onnx.examples import example_of
from lepton_jax.interchange.onnx.function import Imported
from lepton_jax.interchange.onnx.read import Parsed, read
from lepton_jax.interchange.onnx.simplify import folded, pruned, read_leaves
from lepton_jax.interchange.onnx.site import Budget
from lepton_jax.interchange.onnx.weights import with_leaves
from lepton_jax.leaves.qarray import QArray
from lepton_jax.simple.model import Model


@checked
def from_onnx(path: str | os.PathLike[str], *example: Any) -> Model:
    """Read an ONNX file as a model: a differentiable function and named variables, on which every technique works.

    The graph is evaluated by rules of our own on jax arrays. Its floating tensors of more than one element are variables,
    under "params", running statistics of batch norms under "state"; integers that the file scales
    (`DequantizeLinear`, `QLinearConv`, ...) are packed leaves. Shapes, axes and integer tables are constants. Kernels are kept
    with output channels last, (height, width, in, out) and (in, out); activations stay as the file has them, (batch, channels,
    height, width). ``model.apply.leaves`` says how each variable is called in the file.

    Args:
      path: of the file; tensors in files beside it are read too.
      *example: inputs, if those that are found for lengths which the file leaves open will not do.

    Returns:
      the model: it takes the file's inputs in order, and returns its output, or a tuple of several. 64-bit integers are 32-bit
      ones unless jax has 64.

    Raises:
      ImportError: if onnx is not installed; says how to.
      ArtifactError: for a file that is no ONNX file, is damaged, asks for more memory than its bytes justify, or has operators
        that there is no rule for: all of them, and where they are.

    Example:
      >>> import tempfile, jax
      >>> from lepton_jax import Model, deploy
      >>> first = Model(lambda v, x: jnp.tanh(x @ v["w"]), {"w": jnp.eye(2)}, (jnp.ones((3, 2)),))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     deploy.save(first, f"{folder}/m.onnx")
      ...     model = from_onnx(f"{folder}/m.onnx")
      >>> (
      ...     bool((model(jnp.ones((5, 2))) == first(jnp.ones((5, 2)))).all()),
      ...     [leaf.shape for leaf in jax.tree.leaves(model.variables)],
      ... )
      (True, [(2, 2)])
    """
    import_extra("onnx", "onnx")
    name = os.fspath(path)
    try:
        parsed = read(path)
        function, variables = imported(parsed, os.path.basename(name))
        return Model(function, variables, tuple(example) or example_of(function, variables))
    except (ArtifactError, OSError, ImportError):
        raise
    except Exception as error:  # whatever is raised on what strangers wrote
        raise ArtifactError(f"{name} cannot be read: {type(error).__name__}: {one_line(error)}") from error


def imported(parsed: Parsed, name: str) -> tuple[Imported, dict[str, Any]]:
    """The function of a file, and its variables.

    Args:
      parsed: the file; the numbers of its variables are taken out of `parsed.proto`.
      name: what messages call the function.
    """
    budget = Budget(parsed.stored)
    graph, leaves = with_leaves(parsed.graph, budget)
    graph = pruned(folded(graph, budget))
    left = read_leaves(graph)
    kept = {leaf.path: leaf for leaf in leaves if leaf.path in left}
    records = {path: leaf.record() for path, leaf in kept.items()}
    _forget(parsed.proto.graph, {leaf.name for leaf in kept.values()})
    function = Imported(
        graph=graph, leaves=records, proto=parsed.proto, stored=parsed.stored, version=parsed.version, name=name
    )
    return function, {"params": {}} | nested({path: _variable(leaf.value) for path, leaf in kept.items()})


def _forget(graph: Any, names: set[str]) -> None:
    """Take the numbers of variables out of a file that is kept to be written again."""
    for tensor in graph.initializer:
        if tensor.name in names:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
                tensor.ClearField(field)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and node.output[0] in names:
                attribute.ClearField("t")
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                _forget(inner, names)


def _variable(value: Any) -> Any:
    return value if isinstance(value, QArray) else jnp.asarray(value)
