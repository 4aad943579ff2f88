"""What a reader may spend on a file: memory and work, both tied to the file's size, both asked for before they are spent."""

from __future__ import annotations

from lepton_jax.core.files import ArtifactError

# What a small file may unfold to; beyond it, a file may unfold to this many times its size.
_FREE_BYTES, _TIMES = 1 << 24, 1 << 11
# The same of turns: half a second, and as much again for every eight thousand bytes.
_FREE_TURNS, _TURNS_A_BYTE = 1 << 16, 8


def most_bytes(stored: int) -> int:
    """Return how many bytes of memory a file of `stored` bytes may ask for: 16 MiB, or 2048 times its size if that is more.

    Example:
      >>> most_bytes(100), most_bytes(1 << 20)
      (16777216, 2147483648)
    """
    return max(_FREE_BYTES, _TIMES * stored)


def most_turns(stored: int) -> int:
    """Return how much work a file of `stored` bytes may ask for, in turns of a slow loop, of some eight microseconds each.

    Example:
      >>> most_turns(0), most_turns(1 << 20)
      (65536, 8454144)
    """
    return _FREE_TURNS + _TURNS_A_BYTE * stored


def cheap(stored: int) -> int:
    """Return how many turns a stream of `stored` bytes brings with it: a file of such streams alone is never too slow.

    Example:
      >>> cheap(100)
      800
    """
    return _TURNS_A_BYTE * stored


class Allowance:
    """What a file may still ask for; every reader of a file asks here before it allocates or begins.

    Args:
      stored: bytes of the file.
      max_bytes: of memory, if the caller trusts it with more, or less; the work grows alike. None: `most_bytes`.

    Attributes:
      stored, most_bytes: of the file, and of memory.
      turns: how many were asked for.

    Example:
      >>> allowance = Allowance(1000)
      >>> allowance.memory(1 << 30, "the scales")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: the scales: 1073741824 bytes declared, more than the 16777216 left of the 16777216 \
allowed for 1000 stored bytes
    """

    def __init__(self, stored: int, max_bytes: int | None = None) -> None:
        self.stored, self.turns = stored, 0
        self.most_bytes = self._bytes = most_bytes(stored) if max_bytes is None else max_bytes
        self._most_turns = most_turns(stored) * max(1, self.most_bytes // most_bytes(stored))

    def memory(self, count: int, what: str) -> None:
        """Ask for memory.

        Raises:
          ArtifactError: if there is not so much left.
        """
        if count > self._bytes:
            raise ArtifactError(
                f"{what}: {count} bytes declared, more than the {self._bytes} left of the {self.most_bytes} allowed for "
                f"{self.stored} stored bytes"
            )
        self._bytes -= count

    def work(self, turns: int, what: str) -> None:
        """Ask for turns of a slow loop.

        Raises:
          ArtifactError: if there are not so many left.
        """
        self.turns += turns
        if self.turns > self._most_turns:
            raise ArtifactError(
                f"{what}: {self.turns} turns of slow decoding in all, more than the {self._most_turns} allowed for "
                f"{self.stored} stored bytes; if you trust the file, a larger max_bytes of `load` allows more"
            )
