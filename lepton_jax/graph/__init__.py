"""The computation graph of any JAX model: analyse it, or evaluate it with some operations done otherwise."""

from lepton_jax.graph.capture import capture
from lepton_jax.graph.cost import Cost, OperationCost, ParameterCost, cost
from lepton_jax.graph.flow import origins
from lepton_jax.graph.fold import fold_batch_norm
from lepton_jax.graph.interpret import Interpreter, rewrite
from lepton_jax.graph.packed import Unpacked, UnpackedWarning, packed, unpacked
from lepton_jax.graph.ready import Ready, ready
from lepton_jax.graph.summary import summary
from lepton_jax.graph.trace import Equation, Traced, trace, walk
from lepton_jax.graph.weights import Layout, Use, input_rows, weight_uses

__all__ = [
    "Cost",
    "Equation",
    "Interpreter",
    "Layout",
    "OperationCost",
    "ParameterCost",
    "Ready",
    "Traced",
    "Unpacked",
    "UnpackedWarning",
    "Use",
    "capture",
    "cost",
    "fold_batch_norm",
    "input_rows",
    "origins",
    "packed",
    "ready",
    "rewrite",
    "summary",
    "trace",
    "unpacked",
    "walk",
    "weight_uses",
]
