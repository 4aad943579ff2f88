"""The file: a fixed head, then three sections (manifest, program, tensors), each with a checksum; written atomically.

Layout, integers little-endian or LEB128 varints::

    magic (4) | major (1) | minor (1)
    3 x [codec (1) | stored size (varint) | size (varint) | crc32 of the stored bytes (4)]
    crc32 of everything above (4)
    manifest | program | tensors

The stored sizes must add up to the file's size, so nothing is allocated for a size that the file does not have.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import secrets
import shutil
import zlib
from collections.abc import Callable
from typing import NamedTuple

import zstandard

from lepton_jax.core.errors import ArtifactError

MAGIC = b"\x93LPN"
MAJOR, MINOR = 1, 3
SECTIONS = ("manifest", "program", "tensors")
_RAW, _DEFLATE, _ZSTD, _XZ = range(4)
_MAX_INFLATED = 1 << 30
# JSON takes some twenty times its bytes when read; this is room for a hundred thousand tensors.
_MAX_MANIFEST = 1 << 22
_FREE_PROGRAM, _MAX_EXPANSION = 1 << 24, 64
_LONGEST_HEAD = 6 + 3 * (1 + 9 + 9 + 4) + 4
_CHUNK = 1 << 20

# Read first by the manifest's coder: what most manifests say, so that a short one costs few bytes. Part of format version 1.
_WORDS = (
    b'float16bfloat16int8uint8boolint32float8_e4m3fn"recipe":{"metrics":{"batch":"static""sparsity":0.9"error":0.0'
    b'"opt_state":"embedding":""layers":""blocks_0":{"attention":{"query":{"key":{"value":{"out":{"mlp":{"LayerNorm_0":{'
    b'"linear1":{"conv1":{"norm1":{"batch_stats":{"BatchNorm_0":{"mean":"64","var":"64"},"scale":"1"},"params":{'
    b'"Conv_0":{"bias":"20","kernel":"5,5,1,20 c3"},"Conv_1":{"bias":"50 bfloat16","kernel":"3,3,64,128 c4"},'
    b'{"tree":{"params":{"Dense_0":{"bias":"300 float16","kernel":"784,300 c3"},"Dense_1":{"bias":"100","kernel":"300,100 c2"},'
    b'"Dense_2":{"bias":"10 float16","kernel":"100,10 c3"}}},"jax":"0.10.2"}'
)


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


def varint(value: int) -> bytes:
    """Write a non-negative integer in base 128, low digits first.

    Example:
      >>> varint(300)
      b'\\xac\\x02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(take: Callable[[int], bytes]) -> int:
    """Read what `varint` wrote; `take(n)` gives the next n bytes. At most nine digits."""
    value = 0
    for shift in range(0, 63, 7):
        digit = take(1)[0]
        value |= (digit & 127) << shift
        if digit < 128:
            return value
    raise ArtifactError("an integer has more than nine digits")


def _deflate(data: bytes | bytearray) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _WORDS)
    return coder.compress(data) + coder.flush()


def _lzma(size: int) -> list[dict[str, int]]:
    """The settings for `size` bytes: a dictionary no larger than they are, since memory is taken for all of it."""
    dictionary = min(max(size, 1 << 12), 1 << 26)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


def compress(data: bytes | bytearray) -> tuple[int, bytes]:
    """Return the shortest of the codecs' outputs, and which one it is."""
    outputs = [
        (_RAW, bytes(data)),
        (_DEFLATE, _deflate(data)),
        (_ZSTD, zstandard.ZstdCompressor(19, write_checksum=False, write_content_size=False).compress(data)),
        (_XZ, lzma.compress(data, format=lzma.FORMAT_RAW, filters=_lzma(len(data)))),
    ]
    return min(outputs, key=lambda pair: len(pair[1]))


def decompress(codec: int, stored: bytes, size: int) -> bytes:
    """Undo `compress`; never makes more than `size` bytes.

    Raises:
      ArtifactError: if `size` is beyond what is allowed or is not what the bytes hold, or the codec is unknown.
    """
    if size > _MAX_INFLATED:
        raise ArtifactError(f"declares {size} bytes, more than the {_MAX_INFLATED} allowed")
    try:
        data = _inflate(codec, stored, size)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise ArtifactError(f"cannot be decompressed: {error}") from error
    if len(data) != size:
        raise ArtifactError(f"declares {size} bytes but holds {len(data)}{' or more' if len(data) > size else ''}")
    return data


def _inflate(codec: int, stored: bytes, size: int) -> bytes:
    if codec == _RAW:
        return stored
    if codec == _DEFLATE:
        return zlib.decompressobj(-15, _WORDS).decompress(stored, size + 1)
    if codec == _ZSTD:
        # Chunk by chunk: `read` takes all the room that it is asked for, whatever there is to read.
        with zstandard.ZstdDecompressor(max_window_size=1 << 24).stream_reader(stored) as reader:
            out = bytearray()
            while chunk := reader.read(min(_CHUNK, size + 1 - len(out))):
                out += chunk
            return bytes(out)
    if codec == _XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma(size)).decompress(stored, size + 1)
    raise ArtifactError(f"has codec {codec}, which this version does not know")


def build(manifest: bytes, program: bytes | bytearray, tensors: bytes) -> bytes:
    """Return the whole file's bytes. The tensors are entropy-coded already and stored as they are."""
    table, body = bytearray(MAGIC + bytes([MAJOR, MINOR])), bytearray()
    for data, packed in ((manifest, compress(manifest)), (program, compress(program)), (tensors, (_RAW, tensors))):
        codec, stored = packed
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
        with open(path, "rb") as file:
            first, size = file.read(_LONGEST_HEAD), os.fstat(file.fileno()).st_size
            _parse_head(first, size, os.fspath(path))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise ArtifactError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that, whatever happens, its old content or the new one is there.

    The bytes go to a temporary file in the same folder, ``.NAME.*.lepton-part``, reach the disk, and take the name in
    one step. Who is killed before that leaves such a file behind; nothing reads it, and it may be deleted.

    Raises:
      ArtifactError: if the disk is full or the folder cannot be written; a file already there is kept.
    """
    target = os.path.realpath(os.fspath(path))
    folder, base = os.path.split(target)
    temporary = os.path.join(folder, f".{base[:100]}.{secrets.token_hex(4)}.lepton-part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ArtifactError(
            f"cannot write {os.fspath(path)} ({len(data)} bytes): {error.strerror or error}. "
            "A file of that name is as it was; free space or choose another folder."
        ) from error


def _sync_folder(folder: str) -> None:
    """Have a new name reach the disk too, where the system can do that for a folder; the file is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
