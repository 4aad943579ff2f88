"""An imported model back as an ONNX file: the graph that it came from, with the variables as they are now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lepton_jax.artifact.inputs import Axes
from lepton_jax.core import paths
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.extras import import_extra
from lepton_jax.core.files import write_atomic
from lepton_jax.core.packed import is_packed
from lepton_jax.deploy import save
from lepton_jax.interchange.onnx.codes_out import Codes, codes_of
from lepton_jax.interchange.onnx.function import Imported
from lepton_jax.interchange.onnx.load import imported
from lepton_jax.interchange.onnx.read import parsed
from lepton_jax.interchange.onnx.tensors import Folder
from lepton_jax.interchange.onnx.weights import Record
from lepton_jax.leaves.qarray import QArray
from lepton_jax.simple.model import Model, check_model

_PER_CHANNEL, _BLOCKS, _LARGEST = 13, 21, 2**31 - 1
"""The operator sets from which on scales may be one a channel; one a block, and codes of four bits; and bytes of a file."""
_CLOSE = 1e-4


@checked_but("model")
def to_onnx(model: Model, path: str | os.PathLike[str], *, axes: Axes | None = None) -> None:
    """Write a model as an ONNX file.

    A model of `from_onnx` whose function is still the file's is written as the graph that it came from, under the file's names
    and in its layouts: with the variables as they are now, quantized ones as codes of 8 or 4 bits and `DequantizeLinear`. Where
    the file's operator set is too old for that, it is converted to 21; where it cannot be, codes are cast and multiplied.

    Any other model is written by `lepton_jax.deploy.save`: one whose channels were cut, ``Model(plan.rewrite(model.apply),
    plan.shrink(model.variables), model.example)``, one with rounded activations, factors or codebooks, or one that never was
    an ONNX file.

    Args:
      model: what is written.
      path: of the file, ``.onnx``; replaced in one step if it is there.
      axes: which axes of the inputs may have any length, as in `deploy.save`; the graph of a file keeps its own.

    Raises:
      ImportError: if onnx is not installed; says how to.
      ValueError: for another suffix; for operations that have no form in ONNX.
      ArtifactError: if the file cannot be written.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from lepton_jax import deploy, quantize_model
      >>> from lepton_jax.interchange import from_onnx
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     deploy.save(Model(lambda v, x: x @ v, jnp.ones((64, 64)), (jnp.ones((3, 64)),)), f"{folder}/a.onnx")
      ...     small = quantize_model(from_onnx(f"{folder}/a.onnx"), 8)
      ...     to_onnx(small, f"{folder}/b.onnx")
      ...     sizes = [os.path.getsize(f"{folder}/{name}.onnx") for name in "ab"]
      ...     again = from_onnx(f"{folder}/b.onnx")
      >>> sizes[0] > 3 * sizes[1], bool((again(jnp.ones((3, 64))) == small(jnp.ones((3, 64)))).all())
      (True, True)
    """
    import_extra("onnx", "onnx")
    check_model("to_onnx: model", model)
    if os.path.splitext(os.fspath(path))[1].lower() != ".onnx":
        raise ValueError(f"to_onnx: path must end in .onnx; got {os.fspath(path)!r}.")
    made = _of_file(model) if isinstance(model.apply, Imported) else None
    if made is None:
        save(model, path, axes=axes)
        return
    if (size := made.ByteSize()) > _LARGEST:
        raise ArtifactError(f"to_onnx: the file would have {size} bytes; ONNX allows 2 GiB. Quantize the weights.")
    write_atomic(path, made.SerializeToString(deterministic=True))


def _of_file(model: Model) -> Any:
    """The `ModelProto` of the file with new variables; None if they do not fit its graph."""
    function: Imported = model.apply  # type: ignore[assignment]
    leaves, found = paths.flatten(model.variables, is_packed), {}
    names = [leaf.name for leaf in function.leaves.values()]
    if len(set(names)) < len(names) or set(leaves) != set(function.leaves):
        return None
    for path, leaf in leaves.items():
        record = function.leaves[path]
        if tuple(leaf.shape) != record.shape or (one := _stored(record, leaf)) is None:
            return None
        found[record.name] = one
    proto, version = function.proto, function.version
    needed = max((one.version for one in found.values() if isinstance(one, Codes)), default=0)
    if needed > version:
        newer = _converted(function, model, found)
        proto, version = (proto, version) if newer is None else (newer, _BLOCKS)
    return _with(proto, found, version, _aliases(function))


def _aliases(function: Imported) -> dict[str, str]:
    """Names of values that are equal to a variable, and the variable's."""
    return {name: leaf.name for leaf in function.leaves.values() for name in leaf.also}


def _stored(record: Record, leaf: Any) -> Any:
    """How a variable is in the file: an array, or codes; None if neither will do."""
    if record.kind == "integers":  # operators of integers take these as they are, with the scales that the file has
        same = isinstance(leaf, QArray) and leaf.format == record.packed.format
        same = same and all(
            np.array_equal(getattr(leaf, part), getattr(record.packed, part)) for part in ("scale", "zero_point")
        )
        return record.as_in_file(leaf.qvalue).astype(record.dtype) if same else None
    if isinstance(leaf, QArray):
        return codes_of(record, leaf)
    if is_packed(leaf):
        return None
    array = record.as_in_file(leaf)
    return array if record.dtype is None or record.kind == "scaled" else array.astype(record.dtype)


def _with(proto: Any, found: Mapping[str, Any], version: int, aliases: Mapping[str, str]) -> Any:
    """A copy of a file with new variables, all in its outermost graph, which graphs within it see."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(proto)
    _without(model.graph, {*found, *aliases})
    _renamed(model.graph, aliases)
    nodes = []
    for name, value in found.items():
        if isinstance(value, Codes):
            tensors, more = value.written(name, version)
            model.graph.initializer.extend(tensors)
            nodes += more
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
    own = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *own])
    _without_unread(model.graph)
    newer = any(isinstance(value, Codes) for value in found.values())
    model.ir_version = max(model.ir_version, (10 if version >= _BLOCKS else 7) if newer else 3)
    return model


def _without(graph: Any, names: Any) -> None:
    """Take what makes some values out of a graph and out of those within it."""
    for of in (graph.initializer, graph.input):
        kept = [one for one in of if one.name not in names]
        del of[:]
        of.extend(kept)
    kept = [node for node in graph.node if not (node.output and node.output[0] in names)]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                _without(inner, names)


def _renamed(graph: Any, aliases: Mapping[str, str]) -> None:
    """Let nodes read the variables in place of what was equal to them."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in aliases:
                node.input[i] = aliases[name]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                _renamed(inner, aliases)


def _without_unread(graph: Any) -> set[str]:
    """Take nodes and tensors that nobody needs out of a graph: those that moved weights, scales that are others now.

    Returns:
      the names that are read in it.
    """
    needed = {port.name for port in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                    needed |= _without_unread(inner)
    whole, tensors = kept[::-1], [one for one in graph.initializer if one.name in needed]
    for of, left in ((graph.node, whole), (graph.initializer, tensors)):
        del of[:]
        of.extend(left)
    return needed


def _converted(function: Imported, model: Model, found: Mapping[str, Any]) -> Any:
    """The file in operator set 21, if it can be converted and still computes the same; else None."""
    import onnx
    from onnx import version_converter

    dense = {name: value.dense() if isinstance(value, Codes) else value for name, value in found.items()}
    whole = _with(function.proto, dense, function.version, _aliases(function))
    try:
        newer = version_converter.convert_version(whole, _BLOCKS)
        copy = onnx.ModelProto()
        copy.CopyFrom(newer)
        again, variables = imported(parsed(copy, Folder("."), function.stored), function.name)
        both = [jax.tree.leaves(jax.jit(f)(v, *model.example)) for f, v in ((function, model.dense), (again, variables))]
    except Exception:  # whatever the converter raises: there is another way
        return None
    for a, b in zip(*both):
        one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if one.shape != other.shape or np.linalg.norm(one - other) > _CLOSE * max(float(np.linalg.norm(one)), 1e-6):
            return None
    return newer
