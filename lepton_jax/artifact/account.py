"""Where a file's bytes went: per tensor and in total; the sum is the file's size."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np

from lepton_jax import packed
from lepton_jax.artifact import artifact, container, structure
from lepton_jax.artifact.errors import ArtifactError
from lepton_jax.artifact.streams import CATEGORIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorAccount:
    """One tensor's share of a file.

    Args:
      path: where it is in the variables.
      kind: array, codebook, quantized, sparse or key.
      size: elements.
      nonzeros: of the dense array.
      bytes: by category: values, positions, codebook, scales, tables.

    Example:
      >>> TensorAccount(path="w", kind="codebook", size=100, nonzeros=10, bytes={"values": 4, "positions": 6}).bits_per_weight
      0.8
    """

    path: str
    kind: str
    size: int
    nonzeros: int
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        """All its bytes in the file."""
        return sum(self.bytes.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for each element."""
        return 8 * self.total / max(self.size, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """All bytes of a file.

    Args:
      tensors: one entry a tensor, in order; the factors of a factored leaf have one each.
      parameters: elements of the dense variables.
      program: bytes of the compressed program.
      manifest: bytes of the compressed manifest.
      head: bytes of the magic, the sizes and the checksums.

    ``str(account)`` is an aligned table.

    Example:
      >>> tensor = TensorAccount(path="w", kind="codebook", size=100, nonzeros=10, bytes={"values": 4, "positions": 8})
      >>> account = Account(tensors=(tensor,), parameters=100, program=1000, manifest=30, head=38)
      >>> account.total, account.ratio, round(account.file_ratio, 2)
      (1080, 5.0, 1.3)
    """

    tensors: tuple[TensorAccount, ...]
    parameters: int
    program: int
    manifest: int
    head: int

    @property
    def categories(self) -> dict[str, int]:
        """Bytes by purpose; their sum is the file's size."""
        totals = {name: sum(tensor.bytes.get(name, 0) for tensor in self.tensors) for name in CATEGORIES}
        return {**totals, "program": self.program, "manifest": self.manifest, "head": self.head}

    @property
    def total(self) -> int:
        """The file's size."""
        return sum(self.categories.values())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense variables in float32."""
        return 4 * self.parameters

    @property
    def nonzeros(self) -> int:
        """Elements that are not zero."""
        return sum(tensor.nonzeros for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file, the program's apart, for each element."""
        return 8 * (self.total - self.program) / max(self.parameters, 1)

    @property
    def ratio(self) -> float:
        """Float32 bytes of the dense variables over all bytes of the file but the program's."""
        return self.dense_bytes / (self.total - self.program)

    @property
    def file_ratio(self) -> float:
        """Float32 bytes of the dense variables plus the program's, over all bytes of the file."""
        return (self.dense_bytes + self.program) / self.total

    def __str__(self) -> str:
        names = ("tensor", "kind", "weights", "non-zeros", "bits/weight", *CATEGORIES, "bytes")
        rows: list[tuple[str, ...]] = [names]
        for tensor in self.tensors:
            parts = [str(tensor.bytes.get(name, 0)) for name in CATEGORIES]
            figures = [str(tensor.size), str(tensor.nonzeros), f"{tensor.bits_per_weight:.3f}", *parts, str(tensor.total)]
            rows.append((tensor.path, tensor.kind, *figures))
        totals = self.categories
        parts = [str(totals[name]) for name in CATEGORIES]
        inner = sum(totals[name] for name in CATEGORIES)
        rows.append(
            ("all tensors", "", str(self.parameters), str(self.nonzeros), f"{self.bits_per_weight:.3f}", *parts, str(inner))
        )
        blank = ("",) * (len(names) - 2)
        rows += [(name, *blank, str(totals[name])) for name in ("program", "manifest", "head")]
        rows.append(("file", *blank, str(self.total)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
        lines = ["  ".join([row[0].ljust(widths[0]), *[cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]]) for row in rows]
        return "\n".join([*lines, f"ratio {self.ratio:.1f}x (without the program)  file_ratio {self.file_ratio:.1f}x"])


def account(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Account:
    """Count the bytes of a `.lepton` file.

    Args:
      path: the file.
      max_bytes: as in `load`.

    Returns:
      the account; its `total` equals the file's size.

    Raises:
      ArtifactError: for a file that `load` refuses too.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from lepton_jax import save
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(8)}, jnp.ones((1, 8)))
      ...     figures = account(f"{folder}/m.lepton")
      >>> figures.parameters, figures.nonzeros, figures.dense_bytes
      (64, 8, 256)
    """
    name, data = os.fspath(path), container.read(path)
    parsed = container.parse(data, name)
    manifest = artifact.read_manifest(parsed, name)
    tensors = []
    read = artifact.read_tensors(parsed, manifest, name, len(data), max_bytes)
    tree = structure.rebuild(manifest["tree"], iter([leaf for _, _, leaf, _ in read]))
    dense = [leaf.size if packed.is_packed(leaf) else np.size(leaf) for leaf in jax.tree.leaves(tree, is_leaf=packed.is_packed)]
    for leaf_path, spec, leaf, reader in read:
        nonzeros = spec.size if spec.kind == "k" else int(np.count_nonzero(np.asarray(packed.unpack(leaf))))
        tensors.append(
            TensorAccount(
                path=leaf_path,
                kind=spec.kind_name,
                size=spec.size,
                nonzeros=nonzeros,
                bytes=dict(reader.bytes),
            )
        )
    sections = parsed.sections
    out = Account(
        tensors=tuple(tensors),
        parameters=int(sum(dense)),
        program=sections["program"].stored,
        manifest=sections["manifest"].stored,
        head=parsed.head,
    )
    if out.total != len(data):
        raise ArtifactError(f"{name}: the account gives {out.total} bytes, the file has {len(data)}")
    return out
