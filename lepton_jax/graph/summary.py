"""A model's table: modules with their outputs, parameters, multiplications, sparsity and bits."""

from collections.abc import Sequence
from typing import Any

from lepton_jax.core.arguments import checked
from lepton_jax.core.tables import table
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.cost import Cost, OperationCost, ParameterCost, cost
from lepton_jax.graph.trace import Apply

_HEADER = ("module", "output", "parameters", "MACs", "share", "sparsity", "bits", "bytes")


@checked
def summary(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> str:
    """Print, and return, a table of a model's modules and what each costs.

    A module is where parameters stand together (``params/Conv_0``), in the order of use; products without parameters, such
    as attention's, have a row for their scope. `output` is the shape of the module's last result, `share` its part of all
    MACs, `sparsity` the fraction of its elements that are zero or not stored, `bits` what is stored for one element.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``.
      variables: arrays or packed leaves, or shapes.
      *inputs: arrays, or their shapes.
      **static: keywords of `apply`.

    Example:
      >>> import jax.numpy as jnp
      >>> variables = {"hidden": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
      >>> table = summary(lambda v, x: x @ v["hidden"]["kernel"] + v["hidden"]["bias"][None], variables, jnp.ones((2, 4)))
      module  output  parameters  MACs   share  sparsity  bits  bytes
      hidden  (2, 4)  20          32    100.0%     60.0%  32.0     80
      total           20          32    100.0%     60.0%  32.0     80
    """
    found = cost(apply, variables, *inputs, **static)
    notes = ["unknown inside, not counted: " + ", ".join(found.unknown)] if found.unknown else []
    notes += ["counted for one step: " + ", ".join(found.loops)] if found.loops else []
    text = "\n".join([table(_rows(found), left=range(4)), *notes])
    print(text)
    return text


def _rows(found: Cost) -> list[Sequence[str]]:
    modules: dict[str, list[ParameterCost]] = {}
    order = [path for op in found.operations for path in op.parameters]
    for path in dict.fromkeys([*order, *found.parameters]):
        modules.setdefault(_parent(path), []).append(found.parameters[path])
    main = {op.name: _main(op, found) for op in found.operations}
    bare: dict[str, list[OperationCost]] = {}
    for op in found.operations:
        if op.macs and not op.parameters:
            bare.setdefault(op.scope or op.primitive, []).append(op)
    rows = []
    for module, parameters in modules.items():
        own = [op for op in found.operations if main[op.name] == module and op.macs]
        using = own or [op for op in found.operations if main[op.name] == module and op.activation_bytes]
        shape = str(using[-1].shape) if using else ""
        rows.append(_row(module, shape, parameters, sum(op.macs for op in own), found.macs))
    for scope, operations in bare.items():
        rows.append(_row(f"({scope})", str(operations[-1].shape), [], sum(op.macs for op in operations), found.macs))
    rows.append(_row("total", "", list(found.parameters.values()), found.macs, found.macs))
    return [_HEADER, *rows]


def _row(name: str, shape: str, parameters: list[ParameterCost], macs: int, total: int) -> Sequence[str]:
    size, stored = sum(p.size for p in parameters), sum(p.bytes for p in parameters)
    known = [p.nonzeros for p in parameters if p.nonzeros is not None]
    sparsity = f"{100 * (1 - sum(known) / size):.1f}%" if size and len(known) == len(parameters) else ""
    share = f"{100 * macs / total:.1f}%" if total else ""
    return (name, shape, f"{size:,}", f"{macs:,}", share, sparsity, f"{8 * stored / size:.1f}" if size else "", f"{stored:,}")


def _main(op: OperationCost, found: Cost) -> str | None:
    """The module that an operation belongs to: that of the largest parameter it uses."""
    if not op.parameters:
        return None
    return _parent(max(op.parameters, key=lambda path: found.parameters[path].size))


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or path
