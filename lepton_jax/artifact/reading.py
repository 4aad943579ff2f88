"""The manifest and the leaves of a file: read with every check, since a file may be damaged or hostile."""

from __future__ import annotations

import itertools
from typing import Any

from tqdm.auto import tqdm

from lepton_jax.artifact import container, leaves, structure
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import Allowance

# What a leaf takes to read beside its streams, in turns of a slow loop.
_TURNS_A_LEAF, _TURNS_A_PACKED_LEAF = 16, 64


def read_manifest(parsed: container.Container, name: str) -> dict[str, Any]:
    """Return the manifest's JSON.

    Raises:
      ArtifactError: if it is not an object that holds a tree.
    """
    section = parsed.sections["manifest"]
    manifest = parse_json(section.data, f"{name}: the manifest at offset {section.offset}")
    if "tree" not in manifest:
        raise ArtifactError(f"{name}: the manifest at offset {section.offset} has no tree")
    kinds = {"batch": str, "bits": str, "jax": str, "recipe": dict, "metrics": dict, "axes": dict, "constraints": list}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key, kind()), kind):
            found = type(manifest[key]).__name__
            raise ArtifactError(f"{name}: the manifest at offset {section.offset}: {key!r} is of type {found}")
    return manifest


def read_tensors(
    parsed: container.Container,
    manifest: dict[str, Any],
    name: str,
    allowance: Allowance,
    progress: bool = False,
) -> list[tuple[str, leaves.Spec, Any, Reader]]:
    """Decode all leaves.

    Returns:
      (path, description, leaf, reader that counted the leaf's bytes), in order.

    Raises:
      ArtifactError: for damage, naming the tensor.
    """
    section = parsed.sections["tensors"]
    texts = structure.leaf_texts(manifest["tree"])
    try:
        # Every leaf has a byte at least: a longer list is not read to its end.
        specs = [(path, leaves.parse_spec(text)) for path, text in itertools.islice(texts, len(section.data) + 1)]
        readable = len(specs) <= len(section.data)
        factored = 4 * max(structure.dense_sizes(manifest["tree"]), default=0) if readable else 0
    except ArtifactError as error:
        raise ArtifactError(f"{name}: the manifest: {error}") from error
    limit, file_size = allowance.most_bytes, allowance.stored
    wanted = sum(spec.room for _, spec in specs)
    if factored > limit:
        raise ArtifactError(
            f"{name}: a factored tensor of {factored} bytes as a dense one declared, more than the {limit} allowed for a file "
            f"of {file_size} bytes; if you trust it, give load(..., max_bytes=...)"
        )
    if wanted > limit:
        path, spec = max(specs, key=lambda one: one[1].room)
        raise ArtifactError(
            f"{name}: {wanted} bytes of dense weights declared, more than the {limit} allowed for a file of {file_size} bytes, "
            f"most by tensor {shown(path)}: {spec.text}; if you trust it, give load(..., max_bytes=...)"
        )
    out, position, hints = [], 0, Hints()
    for path, spec in tqdm(specs, desc="decode", unit="tensor", disable=None if progress else True):
        reader = Reader(section.data, section.offset, position, allowance)
        try:
            reader.work(_TURNS_A_PACKED_LEAF if spec.kind else _TURNS_A_LEAF, "a leaf")
            leaf = leaves.decode(reader, spec, limit, hints)
        except ArtifactError as error:
            raise ArtifactError(f"{name}: tensor {shown(path)}: {error}") from error
        except (ValueError, IndexError, OverflowError, TypeError, MemoryError) as error:
            raise ArtifactError(f"{name}: tensor {shown(path)}: damaged near offset {reader.offset}: {error}") from error
        position += sum(reader.bytes.values())
        out.append((path, spec, leaf, reader))
    if position != len(section.data):
        raise ArtifactError(
            f"{name}: {len(section.data) - position} bytes belong to no tensor, at offset {section.offset + position}"
        )
    return out
