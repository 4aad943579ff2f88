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
import tempfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import zstandard

from lepton_jax.artifact.errors import ArtifactError

MAGIC = b"\x93LPN"
MAJOR, MINOR = 1, 1
SECTIONS = ("manifest", "program", "tensors")
_RAW, _DEFLATE, _ZSTD, _XZ = range(4)
_MAX_INFLATED = 1 << 30

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
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(stored) as reader:
            return reader.read(size + 1)
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


def parse(file: bytes, name: str) -> Container:
    """Check a file's head, sizes and checksums, and return its sections.

    Args:
      file: all of its bytes.
      name: what to call it in messages.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file; names the section and its offset.
    """
    if file[:4] != MAGIC:
        raise ArtifactError(f"{name}: not a .lepton file: begins with {file[:4]!r} at offset 0, not {MAGIC!r}")
    position = 4

    def take(count: int) -> bytes:
        nonlocal position
        if position + count > len(file):
            raise ArtifactError(f"{name}: truncated: the head ends at offset {len(file)}")
        position += count
        return file[position - count : position]

    major, minor = take(2)
    if major > MAJOR:
        raise ArtifactError(
            f"{name}: version {major}.{minor} is newer than {MAJOR}.{MINOR}, the newest read here; upgrade lepton_jax"
        )
    entries = []
    for _ in SECTIONS:
        entries.append((take(1)[0], read_varint(take), read_varint(take), int.from_bytes(take(4), "little")))
    end = position
    if zlib.crc32(file[:end]) != int.from_bytes(take(4), "little"):
        raise ArtifactError(f"{name}: damaged: wrong checksum of the head, offsets 0 to {end}")
    head = position
    declared = head + sum(stored for _, stored, _, _ in entries)
    if declared != len(file):
        what = "truncated" if declared > len(file) else "followed by foreign bytes"
        raise ArtifactError(f"{name}: {what}: the head declares {declared} bytes, the file has {len(file)}")
    sections = {}
    for section, (codec, stored, size, crc) in zip(SECTIONS, entries):
        data = file[position : position + stored]
        if zlib.crc32(data) != crc:
            raise ArtifactError(f"{name}: damaged: wrong checksum of the {section}, offsets {position} to {position + stored}")
        try:
            sections[section] = Section(section, position, stored, decompress(codec, data, size))
        except ArtifactError as error:
            raise ArtifactError(f"{name}: the {section} at offset {position} {error}") from error
        position += stored
    return Container(sections, head, (major, minor))


def read(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes.

    Raises:
      ArtifactError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ArtifactError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that, whatever happens, its old content or the new one is there.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one step.

    Raises:
      ArtifactError: if the disk is full or the folder cannot be written; a file already there is kept.
    """
    target = os.path.abspath(os.fspath(path))
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=os.path.basename(target) + ".", suffix=".tmp", dir=os.path.dirname(target)
        )
        try:
            os.fchmod(descriptor, 0o644)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise ArtifactError(
            f"cannot write {os.fspath(path)} ({len(data)} bytes): {error.strerror or error}. "
            "A file of that name is as it was; free space or choose another folder."
        ) from error
