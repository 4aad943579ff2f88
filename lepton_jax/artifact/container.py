"""The file: a fixed head, then three sections (manifest, program, tensors), each with a checksum.

Layout, integers little-endian or LEB128 varints::

    magic (4) | major (1) | minor (1)
    3 x [codec (1) | stored size (varint) | size (varint) | crc32 of the stored bytes (4)]
    crc32 of everything above (4)
    manifest | program | tensors

The stored sizes must add up to the file's size, so nothing is allocated for a size that the file does not have.
"""

import os
import zlib
from typing import NamedTuple

from lepton_jax.coding.compression import STORED, compress, decompress
from lepton_jax.coding.streams import read_varint, varint
from lepton_jax.core.files import ArtifactError, open_file, write_atomic

MAGIC = b"\x93LPN"
MAJOR, MINOR = 1, 5
SECTIONS = ("manifest", "program", "tensors")
# JSON takes some twenty times its bytes when read; this is room for a hundred thousand tensors.
_MAX_MANIFEST = 1 << 22
_FREE_PROGRAM, _MAX_EXPANSION = 1 << 24, 64
_LONGEST_HEAD = 6 + 3 * (1 + 9 + 9 + 4) + 4


class Section(NamedTuple):
    """One section as it lies in the file."""

    name: str
    offset: int
    stored: int
    data: bytes


class Container(NamedTuple):
    """The sections of a file, decompressed, and the size of its head."""

    sections: dict[str, Section]
    head: int
    version: tuple[int, int]


def build(manifest: bytes, program: bytes | bytearray, tensors: bytes) -> bytes:
    """Return the whole file's bytes. The tensors are entropy-coded already and stored as they are."""
    table, body = bytearray(MAGIC + bytes([MAJOR, MINOR])), bytearray()
    packed = (compress(manifest), compress(program, program=True), (STORED, tensors))
    for data, (codec, stored) in zip((manifest, program, tensors), packed):
        table += bytes([codec]) + varint(len(stored)) + varint(len(data)) + zlib.crc32(stored).to_bytes(4, "little")
        body += stored
    return bytes(table + zlib.crc32(table).to_bytes(4, "little") + body)


class _Entry(NamedTuple):
    """What the head says of a section."""

    codec: int
    stored: int
    size: int
    crc: int


def _parse_head(file: bytes, size: int, name: str) -> tuple[tuple[int, int], list[_Entry], int]:
    """Check a file's head against its size; `file` are its first bytes, at least as many as a head has.

    Returns:
      (version, what is said of each section, where the first section begins).

    Raises:
      ArtifactError: as `parse`.
    """
    if file[:4] != MAGIC:
        raise ArtifactError(f"{name}: not a .lepton file: begins with {file[:4]!r} at offset 0, not {MAGIC!r}")
    position = 4

    def take(count: int) -> bytes:
        nonlocal position
        if position + count > len(file):
            raise ArtifactError(f"the file ends at offset {len(file)}")
        position += count
        return file[position - count : position]

    if len(file) < 6:
        raise ArtifactError(f"{name}: truncated: the file ends at offset {len(file)}")
    major, minor = take(2)
    if major > MAJOR:
        raise ArtifactError(
            f"{name}: version {major}.{minor} at offset 4: written by a newer lepton_jax; this one reads {MAJOR}.x: upgrade it"
        )
    if major < 1:
        raise ArtifactError(f"{name}: version {major}.{minor} at offset 4 never was; the file is damaged")
    entries = []
    try:
        for _ in SECTIONS:
            entries.append(_Entry(take(1)[0], read_varint(take), read_varint(take), int.from_bytes(take(4), "little")))
        end = position
        take(4)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: the head is damaged or truncated near offset {position}: {error}") from error
    if zlib.crc32(file[:end]) != int.from_bytes(file[end:position], "little"):
        raise ArtifactError(f"{name}: damaged: wrong checksum of the head, offsets 0 to {end}")
    declared = position + sum(entry.stored for entry in entries)
    if declared != size:
        what = "truncated" if declared > size else "followed by foreign bytes"
        raise ArtifactError(f"{name}: {what}: the head declares that it ends at offset {declared}, the file does at {size}")
    return (major, minor), entries, position


def parse(file: bytes, name: str) -> Container:
    """Check a file's head, sizes and checksums, and return its sections.

    Args:
      file: all of its bytes.
      name: what to call it in messages.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file; names the section and its offset.
    """
    version, entries, head = _parse_head(file, len(file), name)
    position, sections = head, {}
    for section, (codec, stored, size, crc) in zip(SECTIONS, entries):
        data = file[position : position + stored]
        if zlib.crc32(data) != crc:
            raise ArtifactError(f"{name}: damaged: wrong checksum of the {section}, offsets {position} to {position + stored}")
        allowed = _MAX_MANIFEST if section == "manifest" else max(_FREE_PROGRAM, _MAX_EXPANSION * stored)
        if size > allowed:
            raise ArtifactError(f"{name}: the {section} at offset {position} declares {size} bytes; {allowed} are allowed")
        try:
            sections[section] = Section(section, position, stored, decompress(codec, data, size))
        except ArtifactError as error:
            raise ArtifactError(f"{name}: the {section} at offset {position} {error}") from error
        position += stored
    return Container(sections, head, version)


def read(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes; what is no `.lepton` file, or has another size than it declares, is not read to its end.

    Raises:
      ArtifactError: if it cannot be read, or its head is wrong.
    """
    try:
        with open_file(path) as file:
            first, size = file.read(_LONGEST_HEAD), os.fstat(file.fileno()).st_size
            _parse_head(first, size, os.fspath(path))
            file.seek(0)
            return file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"cannot read {os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from error


__all__ = ["MAGIC", "MAJOR", "MINOR", "SECTIONS", "Container", "Section", "build", "parse", "read", "write_atomic"]
