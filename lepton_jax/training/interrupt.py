"""Ctrl-C and SIGTERM at a safe moment: between two steps, when the state is whole."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Terminated(SystemExit):
    """A training was ended by SIGTERM, after a whole step; if nobody catches it, the process ends with exit code 143.

    Example:
      >>> Terminated("interrupted after step 3").code
      143
    """

    def __init__(self, message: str = "terminated") -> None:
        super().__init__(message)
        self.code = 128 + signal.SIGTERM


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int | None]]:
    """Note the first Ctrl-C or SIGTERM in the block instead of raising; the second one is raised at once.

    An interrupt in the middle of a step would lose the state, whose buffers the step has been given. In threads other than
    the main one signals cannot be handled, and nothing changes.

    Returns:
      A function that returns the signal that came, or None.

    Example:
      >>> with deferred_interrupt() as came:
      ...     print(came())
      None
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        _handle(before)
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    _handle(dict.fromkeys(before, note))
    try:
        yield lambda: noted[0] if noted else None
    finally:
        _handle(before)


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Raise `Terminated` in the block when SIGTERM comes, so that what is open is closed.

    Example:
      >>> with terminated_by_signal():
      ...     signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
      False
    """

    def end(number: int, frame: Any) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_interrupt(number: int, message: str) -> NoReturn:
    """Raise what a signal raises, after it was noted.

    Raises:
      KeyboardInterrupt: for Ctrl-C.
      Terminated: for SIGTERM, after the message was printed, which the interpreter does not do when it ends.

    Example:
      >>> try:
      ...     raise_interrupt(signal.SIGTERM, "interrupted after step 3")
      ... except Terminated as error:
      ...     print(error, error.code)
      interrupted after step 3 143
    """
    if number != signal.SIGTERM:
        raise KeyboardInterrupt(message)
    print(message, file=sys.stderr)
    raise Terminated(message)


def _handle(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
