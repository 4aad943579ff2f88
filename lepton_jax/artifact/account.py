"""Where a file's bytes went: per tensor and in total; the sum is the file's size."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.artifact.container import Container
from lepton_jax.coding.streams import CATEGORIES, Reader
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.packed import Composite, stored_as
from lepton_jax.core.tables import table
from lepton_jax.leaves.figures import Figures, figures
from lepton_jax.leaves.stored import Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorAccount:
    """One tensor's share of a file.

    Args:
      path: where it is in the variables.
      kind: array, codebook, quantized, sparse or key.
      size: elements.
      shape: of the dense array.
      stored_as: its number format, "int4", or dtype.
      figures: its non-zeros, the entropy bound, and its bytes as papers count them.
      bytes: by category: values, positions, codebook, scales, tables.
      coders: the coders that were chosen, in the order of the stream.

    Example:
      >>> bytes_ = {"values": 4, "positions": 6}
      >>> TensorAccount(path="w", kind="codebook", size=100, figures=Figures(10, 9.0, 12.0), bytes=bytes_).bits_per_weight
      0.8
    """

    path: str
    kind: str
    size: int
    figures: Figures
    bytes: dict[str, int]
    shape: tuple[int, ...] = ()
    stored_as: str = ""
    coders: tuple[str, ...] = ()

    @property
    def nonzeros(self) -> int:
        """Elements of the dense array that are not zero."""
        return self.figures.nonzeros

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

    There are three ratios, and only the last is of real bytes: `nonzero_ratio`, `packed_ratio`, `file_ratio`; `ratio` is that
    of the file's bytes without the program's. ``str(account)`` is an aligned table.

    Example:
      >>> bytes_ = {"values": 4, "positions": 8}
      >>> tensor = TensorAccount(path="w", kind="codebook", size=100, figures=Figures(10, 9.0, 16.0), bytes=bytes_)
      >>> account = Account(tensors=(tensor,), parameters=100, program=1000, manifest=30, head=38)
      >>> account.total, account.nonzero_ratio, account.packed_ratio, account.ratio, round(account.file_ratio, 2)
      (1080, 10.0, 25.0, 5.0, 1.3)
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
    def entropy_bytes(self) -> float:
        """The order-0 entropy of all codes, see `Figures`: less than this only by what neighbours, rows and columns tell."""
        return sum(tensor.figures.entropy_bytes for tensor in self.tensors)

    @property
    def nonzero_ratio(self) -> float:
        """Elements over those that are not zero: a count, no bytes."""
        return self.parameters / max(self.nonzeros, 1)

    @property
    def packed_ratio(self) -> float:
        """Float32 bytes over the bits that papers count: values, gaps, padding zeros, tables of values; see `Figures`."""
        return self.dense_bytes / max(sum(tensor.figures.packed_bytes for tensor in self.tensors), 1)

    @property
    def ratio(self) -> float:
        """Float32 bytes of the dense variables over all bytes of the file but the program's."""
        return self.dense_bytes / (self.total - self.program)

    @property
    def file_ratio(self) -> float:
        """Float32 bytes of the dense variables plus the program's, over all bytes of the file."""
        return (self.dense_bytes + self.program) / self.total

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [
            ("tensor", "stored as", "shape", "weights", "non-zeros", "bits/weight", *CATEGORIES, "bytes in file", "entropy")
        ]
        for tensor in self.tensors:
            parts, entropy = [tensor.bytes.get(name, 0) for name in CATEGORIES], f"{tensor.figures.entropy_bytes:.0f}"
            counts = (tensor.size, tensor.nonzeros, f"{tensor.bits_per_weight:.3f}")
            shape = "x".join(map(str, tensor.shape)) or "-"
            rows.append((shown(tensor.path), tensor.stored_as or tensor.kind, shape, *counts, *parts, tensor.total, entropy))
        parts = [self.categories[name] for name in CATEGORIES]
        counts = (self.parameters, self.nonzeros, f"{self.bits_per_weight:.3f}")
        rows.append(("all tensors", "", "", *counts, *parts, sum(parts), f"{self.entropy_bytes:.0f}"))
        blank = ("",) * (len(rows[0]) - 3)
        rows += [(name, *blank, self.categories[name], "") for name in ("program", "manifest", "head")]
        rows.append(("file", *blank, self.total, ""))
        ratios = (
            f"nonzero_ratio {self.nonzero_ratio:.1f}x (a count)",
            f"packed_ratio {self.packed_ratio:.1f}x (bits as papers count them)",
            f"file_ratio {self.file_ratio:.1f}x (all bytes)",
            f"ratio {self.ratio:.1f}x (all bytes but the program's)",
        )
        lines = table(rows, left=(0, 1, 2)).splitlines()
        return "\n".join([*(line.ljust(len(lines[0])) for line in lines), "  ".join(ratios)])


class Parts(NamedTuple):
    """What a file was made of, as its reader found it.

    Args:
      tensors: (path, description, bytes by category, coders) of each leaf.
      program: bytes of the compressed program.
      manifest: bytes of the compressed manifest.
      head: bytes of the head.
      size: of the file.
    """

    tensors: tuple[tuple[str, Spec, dict[str, int], tuple[str, ...]], ...]
    program: int
    manifest: int
    head: int
    size: int


def parts_of(parsed: Container, read: Sequence[tuple[str, Spec, Any, Reader]]) -> Parts:
    """Return a file's parts.

    Args:
      parsed: its sections.
      read: path, description, leaf and reader of every tensor.
    """
    return Parts(
        tensors=tuple((path, spec, dict(reader.bytes), tuple(reader.coders)) for path, spec, _, reader in read),
        program=parsed.sections["program"].stored,
        manifest=parsed.sections["manifest"].stored,
        head=parsed.head,
        size=parsed.head + sum(section.stored for section in parsed.sections.values()),
    )


def count(parts: Parts, leaves: Sequence[Any]) -> Account:
    """Return the account of a file whose leaves are known.

    Args:
      parts: of the file.
      leaves: the leaves in its order; a factored leaf stands for its factors.

    Raises:
      ArtifactError: if the bytes of the parts do not add up to the file's size.
    """
    coded = [leaf for whole in leaves for leaf in _parts(whole)]
    tensors = tuple(
        TensorAccount(
            path=path,
            kind=spec.kind_name,
            size=spec.size,
            shape=spec.shape,
            stored_as=stored_as(leaf),
            figures=figures(leaf),
            bytes=used,
            coders=coders,
        )
        for (path, spec, used, coders), leaf in zip(parts.tensors, coded, strict=True)
    )
    dense = sum(leaf.size if hasattr(leaf, "size") else np.size(leaf) for leaf in leaves)
    out = Account(tensors=tensors, parameters=int(dense), program=parts.program, manifest=parts.manifest, head=parts.head)
    if out.total != parts.size:
        raise ArtifactError(
            f"the account gives {out.total} bytes, the file has {parts.size}: its tensors are compressed once more as a whole, "
            "so that the bytes of each tensor cannot be told"
        )
    return out


def _parts(leaf: Any) -> Iterable[Any]:
    if isinstance(leaf, Composite):
        for part in leaf.children().values():
            yield from _parts(part)
    else:
        yield leaf


@checked
def account(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Account:
    """Count the bytes of a `.lepton` file; of a loaded one, `Artifact.account` does without reading it again.

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
    from lepton_jax.artifact import artifact  # which builds on this module

    return artifact.load(path, max_bytes=max_bytes).account()
