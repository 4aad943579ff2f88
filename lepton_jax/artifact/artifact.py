"""`save` a packed model as one file, and `load` it without the model's code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import jax

from lepton_jax import packed as packed_leaves
from lepton_jax.artifact import container, leaves, program, structure
from lepton_jax.artifact.errors import ArtifactError
from lepton_jax.artifact.sparse_index import Hints
from lepton_jax.artifact.streams import Reader
from lepton_jax.typing import PyTree

# What a small file may unfold to; beyond it, a file may unfold to this many times its size.
_FREE_BYTES = 1 << 24
_MAX_EXPANSION = 1 << 11


class Artifact:
    """A loaded model: a program and its weights.

    Attributes:
      packed: the variables with their packed leaves, in dicts, lists and tuples.
      variables: the dense variables, bit for bit those that were saved.
      manifest: what the file says about itself: version, tree, tensors, platforms, recipe, metrics.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      ...     model = load(f"{folder}/m.lepton")
      >>> model(jnp.array([[3.0, 4.0]])).tolist(), model.variables["w"].tolist(), model.manifest["batch"]
      ([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], 'symbolic')
    """

    def __init__(self, packed: PyTree, manifest: dict[str, Any], code: bytes):
        self.packed = packed
        self._manifest = manifest
        self._code = code

    @cached_property
    def variables(self) -> PyTree:
        with jax.ensure_compile_time_eval():  # what is kept must hold no tracers of a caller's jit
            return jax.tree.map(leaves.dense, self.packed, is_leaf=packed_leaves.is_packed)

    @cached_property
    def _exported(self) -> Any:
        return program.deserialize(self._code)

    @cached_property
    def _weights(self) -> list[jax.Array]:
        # Not from `variables`: jax sorts the keys of a mapping, and the program's order is the file's.
        with jax.ensure_compile_time_eval():
            return program.plain_weights([leaves.dense(leaf) for leaf in _in_order(self.packed)])

    @cached_property
    def _call(self) -> Callable[..., Any]:
        return jax.jit(self._exported.call)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return {**self._manifest, "platforms": list(self._exported.platforms)}

    def __call__(self, *inputs: Any) -> Any:
        """Run the program: ``apply(variables, *inputs)``, compiled once a batch size.

        Args:
          inputs: as the example inputs were, with any batch size (unless ``manifest["batch"]`` is "static").

        Raises:
          ValueError: for inputs of other structure, shape or dtype; names each.
        """
        try:
            return self._call(self._weights, *inputs)
        except (ValueError, TypeError):
            program.check_inputs(self._exported, inputs)
            raise


def _in_order(tree: Any) -> Iterator[Any]:
    """The leaves in the order of the file, which is not jax's where a node of another type kept an order of its own."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (list, tuple)):
        for child in tree:
            yield from _in_order(child)
    elif tree is not None:
        yield tree


def save(
    path: str | os.PathLike[str],
    apply: Callable[..., Any],
    packed: PyTree,
    *example_inputs: Any,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as one `.lepton` file: program, weights and manifest.

    Args:
      path: the file; replaced in one step if it is there.
      apply: pure function ``apply(variables, *inputs)``.
      packed: the whole variables, any leaf of which may be packed.
      example_inputs: arrays (or trees of them) of the inputs' shapes and dtypes. Leading axes may then have other lengths,
        those of equal length here together: they are the batch.
      recipe: how the model was made, for the manifest; JSON.
      metrics: what it reached, for the manifest; JSON.

    Raises:
      ArtifactError: if a leaf cannot be stored, `apply` cannot be exported or the file cannot be written; a file of that name
        is then as it was.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> folder = tempfile.TemporaryDirectory()
      >>> save(f"{folder.name}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      >>> load(f"{folder.name}/m.lepton")(jnp.array([[3.0, 4.0]])).tolist()
      [[3.0, 4.0]]
      >>> folder.cleanup()
    """
    streams: list[bytes] = []
    hints = Hints()

    def leaf_text(leaf_path: str, leaf: Any) -> str:
        try:
            spec, stream = leaves.encode(leaf, hints)
        except ArtifactError as error:
            raise ArtifactError(f"cannot save {leaf_path or 'the leaf'}: {error}") from error
        streams.append(stream)
        return spec.text

    head: dict[str, Any] = {"tree": structure.describe(packed, leaf_text)}
    exported, symbolic = program.export_program(apply, packed, example_inputs)
    if not symbolic:
        head["batch"] = "static"
    head |= {name: value for name, value in (("recipe", recipe), ("metrics", metrics)) if value}
    head["jax"] = jax.__version__
    try:
        manifest = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"recipe and metrics must be JSON: {error}") from error
    container.write_atomic(path, container.build(manifest, exported.serialize(), b"".join(streams)))


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Artifact:
    """Read a `.lepton` file. Needs neither the model's code nor pickle.

    Args:
      path: the file.
      max_bytes: refuse a file whose dense weights would take more; None: 16 MiB, or 2048 times the file's size if that is more.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file; says what and where.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      ...     model = load(f"{folder}/m.lepton")
      >>> model(jnp.array([[3.0, 4.0]])).tolist(), model.variables["w"].tolist(), model.manifest["batch"]
      ([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], 'symbolic')
    """
    name, data = os.fspath(path), container.read(path)
    parsed = container.parse(data, name)
    manifest = read_manifest(parsed, name)
    described = read_tensors(parsed, manifest, name, len(data), max_bytes)
    tree = structure.rebuild(manifest["tree"], iter([leaf for _, _, leaf, _ in described]))
    tensors = {
        path: {"kind": spec.kind_name, "shape": list(spec.shape), "dtype": spec.dtype, "bytes": dict(reader.bytes)}
        for path, spec, _, reader in described
    }
    full = {"batch": "symbolic", **manifest, "version": list(parsed.version), "tensors": tensors}
    return Artifact(tree, full, parsed.sections["program"].data)


def read_manifest(parsed: container.Container, name: str) -> dict[str, Any]:
    """Return the manifest's JSON.

    Raises:
      ArtifactError: if it is not an object that holds a tree.
    """
    section = parsed.sections["manifest"]
    try:
        manifest = json.loads(section.data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name}: the manifest at offset {section.offset} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or "tree" not in manifest:
        raise ArtifactError(f"{name}: the manifest at offset {section.offset} has no tree")
    return manifest


def read_tensors(
    parsed: container.Container, manifest: dict[str, Any], name: str, file_size: int, max_bytes: int | None = None
) -> list[tuple[str, leaves.Spec, Any, Reader]]:
    """Decode all leaves.

    Returns:
      (path, description, leaf, reader that counted the leaf's bytes), in order.

    Raises:
      ArtifactError: for damage, naming the tensor.
    """
    section = parsed.sections["tensors"]
    try:
        specs = [(path, leaves.parse_spec(text)) for path, text in structure.leaf_texts(manifest["tree"])]
    except ArtifactError as error:
        raise ArtifactError(f"{name}: the manifest: {error}") from error
    limit = max(_FREE_BYTES, _MAX_EXPANSION * file_size) if max_bytes is None else max_bytes
    wanted = sum(spec.dense_bytes for _, spec in specs)
    if wanted > limit:
        raise ArtifactError(
            f"{name}: {wanted} bytes of dense weights declared, more than the {limit} allowed for a file of {file_size} bytes; "
            "if you trust it, give load(..., max_bytes=...)"
        )
    out, position, hints = [], 0, Hints()
    for path, spec in specs:
        reader = Reader(section.data[position:], section.offset + position)
        try:
            leaf = leaves.decode(reader, spec, limit, hints)
        except ArtifactError as error:
            raise ArtifactError(f"{name}: tensor {path}: {error}") from error
        except (ValueError, IndexError, OverflowError, TypeError) as error:
            raise ArtifactError(f"{name}: tensor {path}: damaged near offset {reader.offset}: {error}") from error
        position += sum(reader.bytes.values())
        out.append((path, spec, leaf, reader))
    if position != len(section.data):
        raise ArtifactError(
            f"{name}: {len(section.data) - position} bytes belong to no tensor, at offset {section.offset + position}"
        )
    return out
