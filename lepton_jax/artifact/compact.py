"""A program in few operations and few bytes: what `jax.export` writes three times, or for nobody, once or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jax import export
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir, passmanager
from jax._src.lib.mlir.dialects import hlo

_PASSES = "builtin.module(strip-debuginfo,cse)"


def compact(exported: export.Exported, *, assertions: bool = False) -> export.Exported:
    """Return the same program, shorter: equal in every bit of its results, since XLA does the same to it before anything runs.

    Branches by platform that are equal become one, a function that is called once stands where it is called, equal operations
    are done once; names of places in the source are left out, and so are, unless `assertions` are kept, the checks of lengths,
    which `jax.export.Exported.call` makes from the shapes themselves; all but those that a symbolic scope was given.

    Args:
      exported: for one device.
      assertions: keep what the program itself asserts of lengths.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> exported = export.export(jax.jit(lambda x: jax.nn.relu(x @ x)), platforms=["cpu", "tpu"])(jnp.ones((2, 2)))
      >>> len(compact(exported).mlir_module_serialized) < len(exported.mlir_module_serialized)
      True
    """
    with mlir.make_ir_context():
        module = _jax.mlir.deserialize_portable_artifact(exported.mlir_module_serialized)
        for operation in list(_inside(module.operation)):
            if operation.name == "stablehlo.case":
                _one_branch(operation)
            elif not assertions and operation.name == "stablehlo.custom_call" and _target(operation) == "shape_assertion":
                operation.erase()
        _inline(module)
        passmanager.PassManager.parse(_PASSES).run(module.operation)
        version = hlo.get_version_from_compatibility_requirement(hlo.StablehloCompatibilityRequirement.WEEK_4)
        return dataclasses.replace(exported, mlir_module_serialized=_jax.mlir.serialize_portable_artifact(module, version))


def _inside(operation: Any) -> Iterator[Any]:
    """Every operation within one, the inner ones first."""
    for region in operation.regions:
        for block in region.blocks:
            for one in block.operations:
                yield from _inside(one.operation)
                yield one.operation


def _target(call: Any) -> str:
    """The function that a custom call names."""
    return str(ir.StringAttr(call.attributes["call_target_name"]).value)


def _one_branch(case: Any) -> None:
    """Put the one branch of a choice in its place, if all its branches are equal."""
    first, *others = (region.blocks[0] for region in case.regions)
    if all(_equal(first, other, {}) for other in others):
        _move(first, case)


def _equal(one: Any, other: Any, same: dict[Any, Any]) -> bool:
    """Whether two blocks hold equal operations on equal values; `same` has the other's value for each of the one's."""
    a, b = list(one.operations), list(other.operations)
    if len(a) != len(b) or [str(v.type) for v in one.arguments] != [str(v.type) for v in other.arguments]:
        return False
    same = {**same, **dict(zip(one.arguments, other.arguments))}
    for x, y in zip((o.operation for o in a), (o.operation for o in b)):
        if not _alike(x, y) or [same.get(value, value) for value in x.operands] != list(y.operands):
            return False
        blocks = [[list(region.blocks) for region in operation.regions] for operation in (x, y)]
        if [len(found) for found in blocks[0]] != [len(found) for found in blocks[1]]:
            return False
        if not all(_equal(p, q, same) for ps, qs in zip(*blocks) for p, q in zip(ps, qs)):
            return False
        same.update(zip(x.results, y.results))
    return True


def _alike(x: Any, y: Any) -> bool:
    """Whether two operations are of one kind, their operands and bodies apart."""
    attributes = [{name: operation.attributes[name] for name in operation.attributes} for operation in (x, y)]
    types = [[result.type for result in operation.results] for operation in (x, y)]
    return x.name == y.name and attributes[0] == attributes[1] and types[0] == types[1]


def _move(block: Any, place: Any) -> None:
    """Put a block's operations before an operation, whose results they give, and take that away."""
    *operations, last = block.operations
    for operation in operations:
        operation.operation.move_before(place)
    for result, value in zip(place.results, list(last.operands)):
        result.replace_all_uses_with(value)
    place.erase()


def _inline(module: Any) -> None:
    """Put every function that is called once, and not named otherwise, where it is called."""
    calls: dict[str, list[Any]] = {}
    named = ""
    for operation in _inside(module.operation):
        if operation.name == "func.call":
            calls.setdefault(ir.FlatSymbolRefAttr(operation.attributes["callee"]).value, []).append(operation)
        elif operation.name != "stablehlo.constant":  # whose text may be long
            named += " ".join(str(operation.attributes[name]) for name in operation.attributes)
    for function in [one.operation for one in module.body.operations]:
        name = ir.StringAttr(function.attributes["sym_name"]).value
        if len(calls.get(name, ())) == 1 and f"@{name}" not in named:
            [call], block = calls[name], function.regions[0].blocks[0]
            for argument, value in zip(block.arguments, list(call.operands)):
                argument.replace_all_uses_with(value)
            _move(block, call)
            function.erase()
