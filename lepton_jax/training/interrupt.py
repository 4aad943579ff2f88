"""Ctrl-C at a safe moment: between two steps, when the state is whole."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C in the block instead of raising; the second one is raised at once.

    An interrupt in the middle of a step would lose the state, whose buffers the step has been given. In threads other than
    the main one signals cannot be handled, and nothing changes.

    Returns:
      A function that says whether Ctrl-C was pressed.

    Example:
      >>> with deferred_interrupt() as pressed:
      ...     pressed()
      False
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
