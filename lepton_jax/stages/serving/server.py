"""Serving one unit to other processes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import one_line
from lepton_jax.stages.serving.frames import ARRAYS, ERROR, MOST, Line, PeerError, pack_arrays, unpack_arrays

_IDLE = 3600.0


@checked
class Server:
    """Answers frames of arrays with those that a function makes of them, on this machine's own address.

    One frame is answered at a time; the next waits in the sender's buffers until then, and at most `waiting` connections wait
    for theirs. A peer that sends no whole frame in time, or a damaged one, is told so and cut off; the server goes on.

    Args:
      unit: a function of arrays; returns a tree of arrays, of which the leaves are sent.
      model: 16 bytes, `model_name` of its file.
      port: 0 takes a free one.
      timeout: seconds for a frame.
      most: bytes of a frame at most.
      waiting: connections that may wait.

    Attributes:
      address: host and port.

    Example:
      >>> import numpy as np
      >>> from lepton_jax.stages.serving import Remote, model_name
      >>> with (
      ...     Server(lambda x: (2 * x,), model_name(b"a file")) as server,
      ...     Remote(server.address, model_name(b"a file")) as remote,
      ... ):
      ...     remote(np.arange(3))[0].tolist()
      [0, 2, 4]
    """

    def __init__(
        self,
        unit: Callable[..., Any],
        model: bytes,
        *,
        port: int = 0,
        timeout: float = 30.0,
        most: int = MOST,
        waiting: int = 4,
    ):
        self._unit, self._model, self._timeout, self._most = unit, model, timeout, most
        self._socket = socket.create_server(("127.0.0.1", port), backlog=waiting)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._timeout)
        self._socket.close()

    def run(self) -> None:
        """Serve connections one after another until `close`."""
        self._socket.settimeout(0.1)
        while not self._ended.is_set():
            try:
                connected, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with connected:
                self._answer(Line(connected, self._model, self._timeout, self._most, "the sender"))

    def _answer(self, line: Line) -> None:
        try:
            while not self._ended.is_set():
                frame = line.take(_IDLE if self._thread is None else self._timeout)
                if frame is None:
                    return
                try:
                    outs = jax.tree.leaves(self._unit(*unpack_arrays(frame[1])))
                except PeerError:
                    raise
                except Exception as error:  # what a unit cannot do is told, and the next may be better
                    line.send(ERROR, f"the unit refused: {one_line(error)}".encode())
                    continue
                line.send(ARRAYS, pack_arrays(outs))
        except PeerError as error:
            with contextlib.suppress(PeerError):
                line.send(ERROR, str(error).encode())
            line.finish()
