"""The computation graph of any JAX model: analyse it, or evaluate it with some operations done otherwise."""

from typing import Any

from lepton_jax.graph.capture import capture
from lepton_jax.graph.cost import Cost, OperationCost, ParameterCost, cost
from lepton_jax.graph.fold import fold_batch_norm
from lepton_jax.graph.interpret import Interpreter, rewrite
from lepton_jax.graph.origins import origins
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
    "Traced",
    "Use",
    "capture",
    "cost",
    "fold_batch_norm",
    "input_rows",
    "origins",
    "rewrite",
    "summary",
    "trace",
    "walk",
    "weight_uses",
]


def __getattr__(name: str) -> Any:
    """Running packed leaves has a package of its own; its names stay here too."""
    if name in ("Ready", "Unpacked", "UnpackedWarning", "packed", "ready", "unpacked"):
        from lepton_jax import native

        return getattr(native, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
