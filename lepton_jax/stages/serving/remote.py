"""Units in other processes, called as functions; several one behind another."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.stages.serving.frames import ARRAYS, ERROR, MOST, Line, PeerError, pack_arrays, unpack_arrays, words


@checked
class Remote:
    """A unit that another process serves: ``remote(*arrays)`` returns a tuple of arrays.

    Args:
      address: host and port of its `Server`.
      model: 16 bytes, `model_name` of its file.
      timeout: seconds for an answer.
      most: bytes of a frame at most.

    Raises:
      PeerError: if it cannot be reached; when called, if it dies, is late, refuses, or answers what is no frame of the model.

    Example:
      >>> Remote(("127.0.0.1", 1), bytes(16), timeout=1.0)
      Traceback (most recent call last):
      ...
      lepton_jax.stages.serving.frames.PeerError: nobody serves at 127.0.0.1:1 (...); start its process first.
    """

    def __init__(self, address: tuple[str, int], model: bytes, *, timeout: float = 30.0, most: int = MOST):
        host, port = address
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as error:
            raise PeerError(f"nobody serves at {host}:{port} ({error}); start its process first.") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = f"the unit at {host}:{port}"
        self._line = Line(self._socket, model, timeout, most, self._peer)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __call__(self, *arrays: Any) -> tuple[np.ndarray, ...]:
        try:
            self._line.send(ARRAYS, pack_arrays(arrays))
            frame = self._line.take()
            if frame is None:
                raise PeerError(f"{self._peer} ended without an answer; its process may have died.")
        except PeerError:
            self.close()  # an answer that comes late would be taken for that to another question
            raise
        kind, body = frame
        if kind == ERROR:
            raise PeerError(f"{self._peer} says: {words(body)}")
        return tuple(unpack_arrays(body))


_END = object()


@checked
def in_line(units: Sequence[Any], batches: Iterable[Any], *, waiting: int = 1) -> Iterator[tuple[Any, ...]]:
    """Send batches through units one behind another, each unit busy with its own batch, and give the results in order.

    Between two units wait at most `waiting` batches: a slow one holds back those before it, and in the end the caller.

    Args:
      units: `Remote` ones, or any function that takes what the one before returns as a tuple.
      batches: tuples of arrays.
      waiting: batches between two units at most.

    Raises:
      PeerError: of the first unit that fails; all threads end.

    Example:
      >>> list(in_line([lambda x: (x + 1,), lambda x: (2 * x,)], [(1,), (2,)]))
      [(4,), (6,)]
    """
    queues: list[queue.Queue[Any]] = [queue.Queue(waiting) for _ in range(len(units) + 1)]
    ended = threading.Event()

    def put(place: int, value: Any) -> None:
        while not ended.is_set():
            try:
                queues[place].put(value, timeout=0.05)
                break
            except queue.Full:
                continue

    def take(place: int) -> Any:
        while not ended.is_set():
            try:
                return queues[place].get(timeout=0.05)
            except queue.Empty:
                continue
        return _END

    def feed() -> None:
        try:
            for batch in batches:
                put(0, batch if isinstance(batch, tuple) else (batch,))
                if ended.is_set():
                    return
            put(0, _END)
        except Exception as error:  # handed to the caller
            put(0, error)

    def work(place: int) -> None:
        while True:
            value = take(place)
            if value is not _END and not isinstance(value, Exception):
                try:
                    value = units[place](*value)
                except Exception as error:  # handed on to the caller
                    value = error
            put(place + 1, value)
            if value is _END or isinstance(value, Exception):
                return

    threads = [threading.Thread(target=feed, daemon=True)]
    threads += [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(units))]
    for thread in threads:
        thread.start()
    try:
        while True:
            value = take(len(units))
            if value is _END:
                return
            if isinstance(value, Exception):
                raise value
            yield value
    finally:
        ended.set()
