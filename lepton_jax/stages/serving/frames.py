"""Arrays as frames of bytes between processes: bounded, checksummed, without pickle.

A frame is a head of 26 bytes, a body and a checksum: ``LPTF``, version (1 byte), kind (1 byte), the model's name (16 bytes),
the body's length (uint32), the body, and the CRC-32 of all before it (uint32); integers are little-endian. The body of arrays
is their number (uint16), then of each its dtype's name (length in a byte), its rank (a byte), its dimensions (uint32 each) and
its elements.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import socket
import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jax.coding.arrays import dtype_of
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_text import shown

ARRAYS, ERROR = 1, 2
"""Kinds of frames: values, or what went wrong in words."""
MOST = 1 << 28
"""Bytes of a body at most, if nothing else is said."""
_MAGIC, _VERSION, _HEAD = b"LPTF", 1, struct.Struct("<4sBB16sI")
_RANK, _CHUNK = 32, 1 << 20


class PeerError(ConnectionError):
    """The other process cannot be reached, is too slow, died, or sent what is no frame of this model."""


@checked
def model_name(data: bytes) -> bytes:
    """Return the name of a model in frames: 16 bytes of the SHA-256 of its file.

    Example:
      >>> model_name(b"a file").hex()[:8]
      '7365d029'
    """
    return hashlib.sha256(data).digest()[:16]


def pack(kind: int, model: bytes, body: bytes) -> bytes:
    """Return a frame."""
    frame = _HEAD.pack(_MAGIC, _VERSION, kind, model, len(body)) + body
    return frame + struct.pack("<I", zlib.crc32(frame))


def pack_arrays(arrays: Sequence[Any]) -> bytes:
    """Return the body of a frame of arrays.

    Example:
      >>> [one.tolist() for one in unpack_arrays(pack_arrays([np.arange(2, dtype=np.int32), np.float32(3)]))]
      [[0, 1], 3.0]
    """
    out = bytearray(struct.pack("<H", len(arrays)))
    for value in arrays:
        array = np.asarray(value)
        name = array.dtype.name.encode()
        out += struct.pack(f"<B{len(name)}sB{array.ndim}I", len(name), name, array.ndim, *array.shape)
        out += np.ascontiguousarray(array).tobytes()
    return bytes(out)


def unpack_arrays(body: bytes) -> list[np.ndarray]:
    """Undo `pack_arrays`; sizes are checked before anything is made.

    Raises:
      PeerError: for what is no such body.
    """
    found: list[np.ndarray] = []
    try:
        [count], at = struct.unpack_from("<H", body), 2
        for _ in range(count):
            [length] = struct.unpack_from("<B", body, at)
            name, rank = struct.unpack_from(f"<{length}sB", body, at + 1)
            at += 2 + length
            if rank > _RANK:
                raise PeerError(f"a frame declares an array of {rank} axes; {_RANK} are allowed.")
            shape = struct.unpack_from(f"<{rank}I", body, at)
            at += 4 * rank
            dtype, size = dtype_of(name.decode("ascii", "replace")), math.prod(shape)
            if size * dtype.itemsize > len(body) - at:
                raise PeerError(f"a frame declares {size * dtype.itemsize} bytes of an array, and {len(body) - at} are left.")
            found.append(np.frombuffer(body, dtype, size, at).reshape(shape))
            at += size * dtype.itemsize
    except (struct.error, ArtifactError) as error:
        raise PeerError(f"a frame holds no arrays ({error}).") from error
    if at != len(body):
        raise PeerError(f"a frame has {len(body) - at} bytes too many.")
    return found


class Line:
    """A connection that sends and takes whole frames, each within a time limit.

    Args:
      connected: a socket.
      model: the name of the model whose frames are taken.
      timeout: seconds for a frame, however slowly its bytes come.
      most: bytes of a body at most.
      peer: how errors call the other side.
    """

    def __init__(self, connected: socket.socket, model: bytes, timeout: float, most: int = MOST, peer: str = "the peer"):
        self._socket, self._model, self._timeout, self._most, self._peer = connected, model, timeout, most, peer

    def send(self, kind: int, body: bytes) -> None:
        """Send a frame.

        Raises:
          PeerError: if the other side does not take it in time, or is gone.
        """
        if len(body) > self._most:
            raise PeerError(
                f"a frame of {len(body)} bytes is more than the {self._most} that are allowed; send less at a time."
            )
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(pack(kind, self._model, body))
        except TimeoutError as error:
            raise PeerError(f"{self._peer} did not take a frame within {self._timeout:g} s.") from error
        except OSError as error:
            raise PeerError(f"{self._peer} is gone ({error}); start it anew.") from error

    def take(self, idle: float | None = None) -> tuple[int, bytes] | None:
        """Return the kind and the body of the next frame; None if the other side ended in good order before one.

        Args:
          idle: seconds to wait for its first byte; by default the time limit of a frame.

        Raises:
          PeerError: for a frame that is late, cut off, damaged, too large or of another model.
        """
        first = self._bytes(1, time.monotonic() + (self._timeout if idle is None else idle), "a frame")
        if not first:
            return None
        end = time.monotonic() + self._timeout
        head = first + self._whole(_HEAD.size - 1, end)
        magic, version, kind, model, length = _HEAD.unpack(head)
        if magic != _MAGIC or version != _VERSION or kind not in (ARRAYS, ERROR):
            raise PeerError(f"{self._peer} sent what is no frame of version {_VERSION} (it begins with {head[:6].hex()}).")
        if model != self._model:
            raise PeerError(
                f"{self._peer} sent a frame of another model ({model.hex()[:12]}, not {self._model.hex()[:12]}); "
                "both sides need files that were written together."
            )
        if length > self._most:
            raise PeerError(f"{self._peer} declares a frame of {length} bytes; {self._most} are allowed.")
        body = self._whole(length, end)
        if struct.unpack("<I", self._whole(4, end))[0] != zlib.crc32(body, zlib.crc32(head)):
            raise PeerError(f"{self._peer} sent a damaged frame: its checksum is wrong.")
        return kind, body

    def finish(self) -> None:
        """Send no more, and pass over what the other side has sent, so that it reads what it was told."""
        end, left = time.monotonic() + min(self._timeout, 1.0), self._most
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while left > 0 and (wait := end - time.monotonic()) > 0:
                self._socket.settimeout(wait)
                piece = self._socket.recv(_CHUNK)
                if not piece:
                    return
                left -= len(piece)

    def _whole(self, count: int, end: float) -> bytes:
        data = self._bytes(count, end, "the rest of a frame")
        if len(data) < count:
            raise PeerError(f"{self._peer} ended in the middle of a frame, {count - len(data)} bytes before its end.")
        return data

    def _bytes(self, count: int, end: float, what: str) -> bytes:
        """So many bytes, or fewer if the other side ends."""
        found = bytearray()
        while len(found) < count:
            left = end - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                piece = self._socket.recv(min(count - len(found), _CHUNK))
            except TimeoutError as error:
                raise PeerError(f"{self._peer} did not send {what} within the time limit of {self._timeout:g} s.") from error
            except OSError as error:
                raise PeerError(f"{self._peer} is gone ({error}); start it anew.") from error
            if not piece:
                break
            found += piece
        return bytes(found)


def words(body: bytes) -> str:
    """Return what an error frame says, harmless to print."""
    return shown(body[:2000].decode("utf-8", "replace"), 1000)
