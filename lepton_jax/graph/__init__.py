"""The computation graph of any JAX model: analyse it, or evaluate it with some operations done otherwise.

`trace` makes a graph of a function. What is known of it, value by value, is a `forward.Forward` pass, one file an analysis:
`origins` (which variables a value is of), `roles` (what each leaf is used as, by its `strided` places), `weights` (which leaves
are multiplied by, as the matrices of a `layout`), `flat` (all operations in one list), `axes` (which indices go together).
`layers` are the weights to be treated one after the other: `passage` goes from one to the next, `statistics` looks at what they
are fed. What is evaluated otherwise is an `interpret.Interpreter`, one file a rewrite: `capture`, `fold` (with the values of
`affine`), `moments`. `lowering` has the fastest
form of each operation. `cost` and `summary` count; `scaling` finds scales that cancel, by `scaling_rules`. `primitives` names
operations by kind, `matching` by patterns; `_compat` alone touches what jax may change.
"""

from typing import Any

from lepton_jax.graph.capture import capture
from lepton_jax.graph.cost import Cost, OperationCost, ParameterCost, cost
from lepton_jax.graph.fold import fold_batch_norm
from lepton_jax.graph.interpret import Interpreter, rewrite
from lepton_jax.graph.layout import Layout, Use, input_rows
from lepton_jax.graph.lowering import explain_lowering, fast_lowering, measure_lowerings
from lepton_jax.graph.origins import origins
from lepton_jax.graph.roles import Role, Roles, Weights, roles
from lepton_jax.graph.summary import summary
from lepton_jax.graph.trace import Equation, Traced, trace, walk
from lepton_jax.graph.weights import weight_uses

# isort: split
from lepton_jax.graph.roles import weights  # after the module of that name, whose place it takes

__all__ = [
    "Cost",
    "Equation",
    "Interpreter",
    "Layout",
    "OperationCost",
    "ParameterCost",
    "Role",
    "Roles",
    "Traced",
    "Use",
    "Weights",
    "capture",
    "cost",
    "explain_lowering",
    "fast_lowering",
    "fold_batch_norm",
    "input_rows",
    "measure_lowerings",
    "origins",
    "rewrite",
    "roles",
    "summary",
    "trace",
    "walk",
    "weight_uses",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Running packed leaves has a package of its own; its names stay here too."""
    if name in ("Ready", "Unpacked", "UnpackedWarning", "packed", "ready", "unpacked"):
        from lepton_jax import native

        return getattr(native, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
