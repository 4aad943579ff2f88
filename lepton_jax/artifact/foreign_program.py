"""What a stranger's program may be, checked before jax reads it and before anything of it runs.

`jax.export.deserialize` trusts its bytes: tables that share their children make it work exponentially, and the module may be
text, may call any function that the process has registered, and may ask for arrays of any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from jax._src.export import serialization_generated as schema
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir

from lepton_jax.core.errors import ArtifactError, one_line

_BYTECODE = b"ML\xefR"
_DIALECTS = ("builtin", "func", "sdy", "stablehlo")
_CALLS = re.compile(
    r"(lapack|cusolver|cusparse|hipsolver)_\w+_ffi|(cu|hip)_(lu_pivots_to_permutation|threefry2x32_ffi)|"
    r"stablehlo\.dynamic_\w+|ApproxTopK|Eigh|LuDecomposition|ProductOfElementaryHouseholderReflectors|Qr|Sharding|"
    r"shape_assertion"
)
"""Custom calls that jax itself writes for linear algebra, random bits, look-ups of the largest, and shapes."""
_REFUSED = ("infeed", "outfeed", "recv", "send")
_MAX_DEPTH = 64
_MAX_SIZE_TEXT = 200
_MAX_VALUE_BYTES = 1 << 32


def check_envelope(data: bytes) -> None:
    """Raise unless jax can read an exported program in a time in proportion to its size.

    Args:
      data: a flatbuffer, as `jax.export.Exported.serialize` writes it.

    Raises:
      ArtifactError: if it is none, or has what no program of ours has: several devices, effects, types of nodes that are not
        built in, tables that are read again and again.
    """
    try:
        _read(schema.Exported.GetRootAsExported(bytearray(data)), _Budget(len(data)))
    except ArtifactError:
        raise
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise ArtifactError(f"the program cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


class _Budget:
    """Counts what is read: in an honest file every element has bytes of its own."""

    def __init__(self, size: int):
        self.left = size

    def range(self, count: int) -> range:
        self.left -= count
        if count < 0 or self.left < 0:
            raise ArtifactError("the program is damaged: its tables name more elements than it has bytes")
        return range(count)


def _read(exp: Any, budget: _Budget) -> None:
    """Visit all that jax's reader visits."""
    beside = ("UniqueAbstractMeshes", "UniqueNamedShardings", "OrderedEffects", "UnorderedEffects")
    found = [name for name in beside if getattr(exp, f"{name}Length")()]
    if found or exp.Vjp() is not None or (exp.NrDevices() or exp.NrDevicesShort()) != 1:
        raise ArtifactError(f"the program is not one for a single device without effects ({', '.join(found) or 'derivative'})")
    for name in ("UniqueAvals", "InAvals", "OutAvals"):
        for i in budget.range(getattr(exp, f"{name}Length")()):
            aval = getattr(exp, name)(i)
            sizes = [aval.Shape(j) for j in budget.range(aval.ShapeLength())]
            budget.range(sum(map(len, sizes)))
            if max(map(len, sizes), default=0) > _MAX_SIZE_TEXT:
                raise ArtifactError(f"the program has an axis whose length is a formula of over {_MAX_SIZE_TEXT} characters")
    sides = [f"{side}{what}" for side in ("In", "Out") for what in ("AvalsIdxs", "ShardingsIdxs", "Shardings")]
    for name in (*sides, "DisabledChecks"):
        budget.range(getattr(exp, f"{name}Length")())
    for i in budget.range(exp.PlatformsLength()):
        budget.range(len(exp.Platforms(i)))
    budget.range(exp.ModuleKeptVarIdxLength())
    for tree in (exp.InTree(), exp.OutTree()):
        _read_tree(tree, budget, 0)
    _check_bytecode(exp.MlirModuleSerializedAsNumpy().tobytes())


def _read_tree(tree: Any, budget: _Budget, depth: int) -> None:
    if depth > _MAX_DEPTH or tree.Kind() == schema.PyTreeDefKind.custom:
        raise ArtifactError(f"the program's arguments are nested deeper than {_MAX_DEPTH}, or of types that are not built in")
    for i in budget.range(tree.ChildrenNamesLength()):
        budget.range(len(tree.ChildrenNames(i)))
    for i in budget.range(tree.ChildrenLength()):
        _read_tree(tree.Children(i), budget, depth + 1)


def _check_bytecode(module: bytes) -> None:
    if not module.startswith(_BYTECODE):
        raise ArtifactError("the program is no StableHLO bytecode; text is not accepted")


def check_module(module: bytes) -> None:
    """Raise unless a module only computes: no functions of the process, no transfers, no values beyond 4 GiB.

    Args:
      module: a StableHLO portable artifact.

    Raises:
      ArtifactError: with what it calls, or what it holds.
    """
    _check_bytecode(module)
    with mlir.make_ir_context():
        try:
            parsed = _jax.mlir.deserialize_portable_artifact(module)
        except Exception as error:  # whatever the reader of foreign bytes raises
            raise ArtifactError(f"the program cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
        for operation in _operations(parsed.operation):
            try:
                problem = _problem(operation)
            except (RuntimeError, ValueError) as error:  # of names that are no text
                raise ArtifactError(f"the program cannot be read: {one_line(error)}") from error
            if problem:
                raise ArtifactError(f"the program {problem}")


def _operations(module: Any) -> Iterator[Any]:
    found: list[Any] = []

    def visit(operation: Any) -> Any:
        found.append(operation.operation)
        return ir.WalkResult.ADVANCE

    module.walk(visit)
    yield from found


def _problem(operation: Any) -> str | None:
    dialect, _, name = operation.name.partition(".")
    if dialect not in _DIALECTS or name in _REFUSED:
        return f"has the operation {operation.name[:60]!r}, which a file may not have"
    if operation.name == "stablehlo.custom_call":
        target = str(operation.attributes["call_target_name"].value)
        if not _CALLS.fullmatch(target):
            shown = target if re.fullmatch(r"[\w.]{1,60}", target) else repr(target[:60])
            return f"calls {shown}, and a file may not call functions of the process"
    for value in operation.results:
        size = _bytes(value.type)
        if size > _MAX_VALUE_BYTES:
            return f"makes a value of {size} bytes; at most {_MAX_VALUE_BYTES} are allowed"
    return None


def _bytes(type_: Any) -> int:
    """Of an array of known shape; 0 of anything else, and 1 for an axis whose length is not known."""
    if not isinstance(type_, ir.RankedTensorType):
        return 0
    width = re.search(r"\d+", str(type_.element_type))
    sizes = [1 if type_.is_dynamic_dim(axis) else type_.get_dim_size(axis) for axis in range(type_.rank)]
    return math.prod(sizes) * max(int(width[0]) if width else 64, 8) // 8
