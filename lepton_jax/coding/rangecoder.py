"""Adaptive binary coding: a range coder, and a mixer of several adaptive predictions, all in integers.

A decoder recomputes each probability, so nothing here may depend on floating-point arithmetic: the tables are made with
integers, and a file decodes alike on every platform. Encoder and decoder run the same model: `code` takes the bit, or any
value when decoding, and returns the bit.

Source: G. N. N. Martin, "Range encoding", 1979; M. Mahoney, "Adaptive weighing of context models for
lossless data compression", 2005 (logistic mixing). Deviation: a prediction enters as its distance from the overall one, weighed
by how often its context was seen.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from lepton_jax.core.errors import ArtifactError

T = TypeVar("T")

PROBABILITY_BITS = 16
_ONE = 1 << PROBABILITY_BITS
_MASK = (1 << 32) - 1
_ALIKE = 1 << 24
"""Below it two numbers begin with the same byte."""
STRETCH_LIMIT = 2047
_FRACTION = 60


class Coder:
    """A sink or source of bits, which holds an interval of 32 bits that every bit narrows."""

    def __init__(self) -> None:
        self._low, self._high = 0, _MASK

    def code(self, bit: int, p1: int) -> int:
        """Code one bit whose probability of being 1 is ``p1 / 2**16``, 0 < p1 < 2**16; return it."""
        return self.code_all((bit,), (p1,))[0]

    def code_all(self, bits: Sequence[int], p1s: Sequence[int]) -> list[int]:
        """Code one bit for each probability; return them. When decoding, `bits` is not read."""
        raise TypeError(f"{type(self).__name__} does not say how bits are coded")


class Encoder(Coder):
    """Turns bits and their probabilities into bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._out = bytearray()

    def code_all(self, bits: Sequence[int], p1s: Sequence[int]) -> list[int]:
        low, high, out = self._low, self._high, self._out
        for bit, p1 in zip(bits, p1s):
            middle = low + ((high - low) * p1 >> PROBABILITY_BITS)
            if bit:
                high = middle
            else:
                low = middle + 1
            while (low ^ high) < _ALIKE:
                out.append(high >> 24)
                low, high = low << 8 & _MASK, high << 8 & _MASK | 255
        self._low, self._high = low, high
        return list(bits)

    def finish(self) -> bytes:
        """Return all bytes: the fewest that, followed by zeros, lie within the last interval."""
        for count in range(5):
            shift = 32 - 8 * count
            tail = -(-self._low >> shift)
            if tail << shift <= self._high:
                break
        return bytes(self._out) + tail.to_bytes(count, "big")


class Decoder(Coder):
    """Turns bytes and the same probabilities into bits. Zeros follow the last byte."""

    def __init__(self, data: bytes):
        super().__init__()
        self._data, self._position = data, 4
        self._value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def code_all(self, bits: Sequence[int], p1s: Sequence[int]) -> list[int]:
        low, high, value, data, position = self._low, self._high, self._value, self._data, self._position
        out = []
        for p1 in p1s:
            middle = low + ((high - low) * p1 >> PROBABILITY_BITS)
            if value <= middle:
                high = middle
                out.append(1)
            else:
                low = middle + 1
                out.append(0)
            while (low ^ high) < _ALIKE:
                low, high = low << 8 & _MASK, high << 8 & _MASK | 255
                value = value << 8 & _MASK | (data[position] if position < len(data) else 0)
                position += 1
        self._low, self._high, self._value, self._position = low, high, value, position
        return out

    def finish(self) -> None:
        """Check that the bits came from these bytes.

        Raises:
          ArtifactError: if far more bytes were read than there are, or some were not read.
        """
        if not len(self._data) <= self._position <= len(self._data) + 4:
            raise ArtifactError(f"a coded stream of {len(self._data)} bytes was read to byte {self._position}")


def encoded(model: Callable[[Coder], Any]) -> bytes:
    """Return the bytes of the bits that a model codes."""
    coder = Encoder()
    model(coder)
    return coder.finish()


def decoded(stream: bytes, model: Callable[[Coder], T]) -> T:
    """Return what the same model, decoding, makes of the bytes.

    Raises:
      ArtifactError: if they are not the model's.
    """
    coder = Decoder(stream)
    found = model(coder)
    coder.finish()
    return found


@cache
def squash_table() -> tuple[int, ...]:
    """``2**16 / (1 + exp(-x / 256))`` for x = -2047 ... 2047, within (0, 2**16)."""
    one = 1 << _FRACTION
    term, root = one, 0
    for k in range(1, 12):  # exp(1/256) = sum of (1/256)**k / k!
        root += term
        term = term // (256 * k)
    powers = [one]
    for _ in range(STRETCH_LIMIT):
        powers.append(powers[-1] * root >> _FRACTION)
    upper = [_ONE * power // (one + power) for power in powers]
    lower = [_ONE * one // (one + power) for power in powers[:0:-1]]
    return tuple(min(max(p, 16), _ONE - 16) for p in lower + upper)


@cache
def stretch_table() -> tuple[int, ...]:
    """The inverse: ``256 ln(p / (1 - p))`` for p = (i + 1/2) / 4096."""
    squash = squash_table()
    table, x = [], 0
    for i in range(4096):
        while x < 2 * STRETCH_LIMIT and squash[x] < i * 16 + 8:
            x += 1
        table.append(x - STRETCH_LIMIT)
    return tuple(table)


class Mixer:
    """Predicts bits from several contexts at once and learns, bit by bit, whom to trust.

    Every context keeps an adaptive probability p_i and a count n_i. With ``s = stretch(p)``, and s_0 that of the first
    context (the base rate), the prediction is ``squash(s_0 + sum_i w_i c(n_i) (s_i - s_0))``, and the weights follow the
    gradient of the coding cost.

    Args:
      contexts: how many contexts every bit comes with; the first is the base.
      rate: the learning rate of the weights, in 2**-18.
      limit: a context's probability moves by ``1 / (min(n, limit) + 1.5)`` of its error.
    """

    def __init__(self, contexts: int, rate: int = 6, limit: int = 250):
        self._slots: list[dict[int, list[int]]] = [{} for _ in range(contexts)]
        self._weights = [_ONE * 5 // (4 * (contexts - 1))] * (contexts - 1)
        self._stretch, self._squash = stretch_table(), squash_table()
        self._rates = [(1 << 17) // (2 * n + 3) for n in range(limit + 1)]
        self._trust = [(n << 8) // (n + 2) for n in range(limit + 1)]
        self._limit, self._rate = limit, rate

    def code(self, coder: Coder, bit: int, contexts: tuple[int, ...]) -> int:
        """Code one bit, and learn from it.

        Args:
          coder: an `Encoder` or a `Decoder`.
          bit: the bit, 0 or 1; when decoding, anything.
          contexts: one integer a context.
        """
        stretch, weights, trust, limit = self._stretch, self._weights, self._trust, self._limit
        base = self._slots[0].get(contexts[0])
        if base is None:
            base = self._slots[0][contexts[0]] = [_ONE >> 1, 0]
        s0 = stretch[base[0] >> 4]
        slots, inputs, total = [base], [], 0
        for table, context, weight in zip(self._slots[1:], contexts[1:], weights):
            slot = table.get(context)
            if slot is None:
                slot = table[context] = [base[0], 0]
            x = (stretch[slot[0] >> 4] - s0) * trust[slot[1]] >> 8
            slots.append(slot)
            inputs.append(x)
            total += x * weight
        position = s0 + (total >> 16)
        p = self._squash[min(max(position, -STRETCH_LIMIT), STRETCH_LIMIT) + STRETCH_LIMIT]
        bit = coder.code(bit, p)
        error = ((bit << 16) - p) * self._rate
        for i, x in enumerate(inputs):
            weights[i] += x * error >> 18
        aim = _ONE - 1 if bit else 0
        rates = self._rates
        for slot in slots:
            slot[0] += (aim - slot[0]) * rates[slot[1]] >> 16
            if slot[1] < limit:
                slot[1] += 1
        return bit

    def code_number(self, coder: Coder, number: int, width: int, contexts: Sequence[int]) -> int:
        """Code a number of `width` bits, the highest first, down a binary tree; return it.

        Args:
          coder: an `Encoder` or a `Decoder`.
          number: below ``2**width``; when decoding, anything.
          width: how many bits.
          contexts: of the number; each bit has them together with the bits before it.
        """
        node = 1
        for shift in range(width - 1, -1, -1):
            each = tuple([context << width | node for context in contexts])
            node = node * 2 + self.code(coder, number >> shift & 1, each)
        return node - (1 << width)
