"""The head of a data set's file: what arrays there are, and where each block of each lies.

Layout, integers little-endian::

    magic (4) | major (1) | minor (1) | size of the head (4)
    head: a container of the artifact (its sections have checksums): manifest | nothing | index
    the blocks: for each block of examples, the stream of each array

Index: for each array the length and bytes of what its blocks share, then for each block its stored size (varint) and crc32.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lepton_jax.artifact import container
from lepton_jax.coding.arrays import dtype_of
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_json import parse_json
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import Allowance
from lepton_jax.data.compressed import lossless, patch_pca

MAGIC = b"\x93LPD"
MAJOR, MINOR = 1, 0
PREFIX = 10
KINDS = ("lossless", "patch_pca")
_MAX_AXES = 32


class Column(NamedTuple):
    """One array of a file.

    Args:
      name: of the array.
      dtype: of its numbers.
      shape: examples first.
      basis: what its blocks share, if they are lossy.
      sizes: stored bytes of each block.
      checksums: crc32 of each.
      shared: bytes of what its blocks share.
      figures: of the report.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    basis: patch_pca.Basis | None
    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    shared: int
    figures: dict[str, Any]

    @property
    def raw_bytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def decode(self, reader: Reader, rows: int) -> np.ndarray:
        """Read the stream of a block of so many examples.

        Raises:
          ArtifactError: if it does not hold them, or asks for more than the reader allows.
        """
        shape = (rows, *self.shape[1:])
        reader.memory(math.prod(shape) * self.dtype.itemsize, f"{rows} examples of shape {self.shape[1:]}")
        if self.basis is None:
            array = lossless.decode(reader, shape, self.dtype)
        else:
            array = patch_pca.decode(reader, shape, self.dtype, self.basis)
        if reader.left:
            raise ArtifactError(f"{reader.left} bytes belong to no example")
        return array


class Head(NamedTuple):
    """What is known of a file without its blocks.

    Args:
      columns: the arrays.
      examples: how many.
      rows: examples of a block; the last may have fewer.
      meta: what the writer said of the set.
      size: bytes before the first block.
    """

    columns: tuple[Column, ...]
    examples: int
    rows: int
    meta: dict[str, Any]
    size: int

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-self.examples // self.rows)


def build(head: Head, streams: Sequence[bytes], shared: Sequence[bytes]) -> bytes:
    """Return the whole file.

    Args:
      head: without sizes and checksums.
      streams: of every block every array's, in order.
      shared: what the blocks of each array share.
    """
    described = {
        column.name: {
            "dtype": column.dtype.name,
            "shape": list(column.shape[1:]),
            "codec": KINDS[column.basis is not None],
            **column.figures,
        }
        for column in head.columns
    }
    manifest: dict[str, Any] = {"examples": head.examples, "block": head.rows, "arrays": described}
    if head.meta:
        manifest["meta"] = head.meta
    index, width = Writer(), len(head.columns)
    for number in range(width):
        index.block(shared[number])
        for stream in streams[number::width]:
            index.number(len(stream))
            index.put(zlib.crc32(stream).to_bytes(4, "little"))
    try:
        text = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"meta must be JSON: {error}") from error
    inner = container.build(text, b"", bytes(index.data))
    return b"".join([MAGIC, bytes([MAJOR, MINOR]), len(inner).to_bytes(4, "little"), inner, *streams])


def parse(start: bytes, file_size: int, name: str) -> Head:
    """Read the head.

    Args:
      start: the file's bytes as far as the head goes.
      file_size: of the whole file.
      name: what to call it in messages.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file.
    """
    parsed = container.parse(start[PREFIX:], f"{name}: the head")
    manifest = parse_json(parsed.sections["manifest"].data, f"{name}: damaged: the manifest")
    missing = [key for key in ("examples", "block", "arrays") if key not in manifest]
    if missing:
        raise ArtifactError(f"{name}: damaged: the manifest does not describe a data set: {', '.join(missing)} missing")
    count, rows, arrays, meta = manifest["examples"], manifest["block"], manifest["arrays"], manifest.get("meta", {})
    if not isinstance(arrays, dict) or not isinstance(meta, dict):
        raise ArtifactError(f"{name}: damaged: the manifest's arrays and meta must be objects")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (count, rows)) or not rows:
        raise ArtifactError(f"{name}: damaged: {shown(count)} examples in blocks of {shown(rows)}")
    section = parsed.sections["tensors"]
    if section.stored != len(section.data):
        raise ArtifactError(f"{name}: damaged: an index of {len(section.data)} bytes in {section.stored}")
    allowance = Allowance(file_size)
    reader, blocks = Reader(section.data, PREFIX + section.offset, allowance=allowance), -(-count // rows)
    if blocks * max(len(arrays), 1) > len(section.data):
        raise ArtifactError(f"{name}: damaged: {blocks} blocks declared, more than the index has bytes")
    columns = tuple(_column(reader, allowance, key, entry, count, blocks, name) for key, entry in arrays.items())
    declared = len(start) + sum(sum(column.sizes) for column in columns)
    if reader.left or declared != file_size:
        what = "truncated" if declared > file_size else "damaged"
        raise ArtifactError(f"{name}: {what}: the head declares {declared} bytes, the file has {file_size}")
    return Head(columns, count, rows, meta, len(start))


def head_size(prefix: bytes, file_size: int, name: str) -> int:
    """Return where the blocks begin, from the file's first bytes.

    Raises:
      ArtifactError: for a foreign, newer or truncated file.
    """
    if prefix[:4] != MAGIC:
        raise ArtifactError(f"{name}: not a data set of lepton_jax: begins with {prefix[:4]!r} at offset 0, not {MAGIC!r}")
    if len(prefix) < PREFIX:
        raise ArtifactError(f"{name}: truncated: the head ends at offset {len(prefix)}")
    if prefix[4] > MAJOR:
        raise ArtifactError(f"{name}: version {prefix[4]}.{prefix[5]} is newer than {MAJOR}.{MINOR}; upgrade lepton_jax")
    size = PREFIX + int.from_bytes(prefix[6:10], "little")
    if size > file_size:
        raise ArtifactError(f"{name}: truncated: a head of {size} bytes declared, the file has {file_size}")
    return size


def _column(reader: Reader, allowance: Allowance, key: str, entry: Any, count: int, blocks: int, name: str) -> Column:
    where = f"{name}: array {shown(key)}"
    try:
        kind, item = KINDS.index(entry["codec"]), tuple(entry["shape"])
        dtype = dtype_of(entry["dtype"])
        figures = _figures(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{where}: damaged, or of a newer version: {shown(error)}") from error
    # An axis of length 0 makes no array of any size possible.
    known = len(item) < _MAX_AXES and all(type(n) is int and 0 <= n < 1 << 40 for n in item)
    if not known or max(count, 1) * math.prod(max(n, 1) for n in item) >= 1 << 56:
        raise ArtifactError(f"{where}: {count} examples of shape {shown(item)} are not possible")
    basis = None
    try:
        shared = reader.block()
        if kind:
            if len(item) != 3 or not math.prod(item):
                raise ArtifactError(f"examples of shape {item} have no patches")
            if dtype.kind not in "iuf":
                raise ArtifactError(f"examples of {dtype} have no patches")
            basis = patch_pca.read_basis(Reader(shared, reader.offset - len(shared), allowance=allowance), item[2])
        sizes, checksums = [], []
        for _ in range(blocks):
            sizes.append(reader.number())
            checksums.append(int.from_bytes(reader.take(4), "little"))
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error
    return Column(key, dtype, (count, *item), basis, tuple(sizes), tuple(checksums), len(shared), figures)


def _figures(entry: dict[str, Any]) -> dict[str, Any]:
    """The figures of the report.

    Raises:
      ValueError: if they are none.
    """
    figures = {field: entry[field] for field in ("mse", "psnr", "kept", "chosen") if field in entry}
    for field, value in figures.items():
        good = isinstance(value, dict) and all(type(n) is int for n in value.values()) if field == "chosen" else False
        if not good and (field == "chosen" or type(value) not in (int, float, type(None))):
            raise ValueError(f"its figure {field} is {shown(value)}")
    return {field: value for field, value in figures.items() if value is not None}
