"""Byte streams whose every byte has an owner: the tensor it belongs to and what it is for."""

from collections import Counter
from collections.abc import Callable

from lepton_jax.core.files import ArtifactError
from lepton_jax.core.limits import Allowance

CATEGORIES = ("values", "positions", "codebook", "scales", "tables")
"""What a tensor's bytes are for; ``tables``: coders' choices, probabilities and lengths."""


def turns(stored: int) -> int:
    """How many turns of a slow loop a coded stream of `stored` bytes may ask for.

    No stream that pays comes near it: where a byte holds so many symbols, other coders do as well. Encoders keep to it, so a
    stream that asks for more is a bomb, and is refused before the loop begins.
    """
    return 256 * (stored + 4)


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


class Writer:
    """Collects bytes, each with its category.

    Args:
      coder: the number of the coder that the first byte names; None for a stream without.
      *parts: what follows.

    Example:
      >>> writer = Writer(3)
      >>> writer.number(300)
      >>> writer.data.hex()
      '03ac02'
    """

    def __init__(self, coder: int | None = None, *parts: bytes | bytearray) -> None:
        self.data = bytearray(b"" if coder is None else [coder]) + b"".join(parts)

    def put(self, data: bytes | bytearray) -> None:
        """Append bytes whose number the reader will know."""
        self.data += data

    def number(self, value: int) -> None:
        """Append a non-negative integer."""
        self.data += varint(value)

    def block(self, data: bytes) -> None:
        """Append bytes and, before them, their number."""
        self.number(len(data))
        self.data += data

    def __len__(self) -> int:
        return len(self.data)


class Reader:
    """Reads what a `Writer` collected, counts the bytes of each category and notes the coders that were chosen.

    Args:
      data: the bytes.
      offset: where in the file they lie.
      position: where among them to begin.
      allowance: of memory and work, shared by all that is read of a file; None: that of these bytes alone.

    Attributes:
      bytes: how many were read, by category.
      coders: names of the coders, in the order of the stream.
    """

    def __init__(self, data: bytes, offset: int = 0, position: int = 0, allowance: Allowance | None = None):
        self._allowance = Allowance(len(data)) if allowance is None else allowance
        self._data = data
        self._position = position
        self._offset = offset
        self.bytes: Counter[str] = Counter()
        self.coders: list[str] = []

    @property
    def offset(self) -> int:
        """Where in the file the next byte lies."""
        return self._offset + self._position

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._position

    def memory(self, count: int, what: str) -> None:
        """Ask for so many bytes of memory beside the declared arrays, see `Allowance.memory`."""
        self._allowance.memory(count, f"{what} near offset {self.offset}")

    def work(self, turns: int, what: str) -> None:
        """Ask for so many turns of a slow loop, see `Allowance.work`."""
        self._allowance.work(turns, f"{what} near offset {self.offset}")

    def peek(self) -> int:
        """Return the next byte and leave it there."""
        if not self.left:
            raise ArtifactError(f"the bytes end at offset {self.offset}")
        return self._data[self._position]

    def coder(self, names: tuple[str, ...], what: str) -> int:
        """Return the number of the coder that is named by the next byte, and note it.

        Raises:
          ArtifactError: if there are not so many coders.
        """
        coder = self.take(1)[0]
        if coder >= len(names):
            raise ArtifactError(f"unknown coder {coder} of {what} at offset {self.offset - 1}; a newer version may read it")
        self.coders.append(names[coder])
        return coder

    def take(self, count: int, category: str = "tables") -> bytes:
        """Return the next bytes, on the account of `category`."""
        if count > self.left:
            raise ArtifactError(f"{count} bytes of {category} declared at offset {self.offset}, but {self.left} are left")
        self._position += count
        self.bytes[category] += count
        return self._data[self._position - count : self._position]

    def number(self, category: str = "tables") -> int:
        """Return the next integer."""
        return read_varint(lambda count: self.take(count, category))

    def block(self, category: str = "tables") -> bytes:
        """Return bytes that were written with their number; the number is on the account of the tables."""
        return self.take(self.number(), category)
