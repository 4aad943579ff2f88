"""The mixer of adaptive predictions for many bits at once: what `rangecoder.Mixer` does bit by bit, by arrays.

All bits of a batch are predicted from what earlier batches taught, coded, and then learned from together; so a batch costs
a few array operations and, for each bit, one turn of a short loop. All in integers: a decoder recomputes the same
probabilities on every platform.
"""

import numpy as np

from lepton_jax.coding.rangecoder import PROBABILITY_BITS, STRETCH_LIMIT, Coder, squash_table, stretch_table

_BATCH = 256
_ONE = 1 << PROBABILITY_BITS


class BatchMixer:
    """Predicts a batch of bits from several contexts each, and learns whom to trust.

    The model is that of `rangecoder.Mixer`: adaptive probabilities with counts, mixed in the logistic domain relative to the
    first context's. A batch that brings m bits, k of them 1, to a context of n bits moves its probability p to
    ``((n + 1.5) p + k) / (n + 1.5 + m)``; the weights follow the sum of the batch's gradients.

    Args:
      sizes: how many values each context has; the first is the base.
      rate: the learning rate of the weights, in 2**-18.
      limit: the count n stays at most this, so that old bits fade.
    """

    def __init__(self, sizes: tuple[int, ...], rate: int = 4, limit: int = 400):
        self._p = [np.full(size, _ONE >> 1, np.int64) for size in sizes]
        self._n = [np.zeros(size, np.int64) for size in sizes]
        self._weights = [_ONE * 5 // (4 * (len(sizes) - 1))] * (len(sizes) - 1)
        self._stretch = np.array(stretch_table(), np.int64)
        self._squash = np.array(squash_table(), np.int64)
        self._limit, self._rate = limit, rate

    def code(self, coder: Coder, bits: np.ndarray | None, contexts: tuple[np.ndarray, ...]) -> np.ndarray:
        """Code a batch of bits, and learn from it.

        Args:
          coder: an `Encoder` or a `Decoder`.
          bits: zeros and ones, shape (n,); None to decode.
          contexts: one array of shape (n,) a context, each below its size.

        Returns:
          The bits, int64.
        """
        base, *others = contexts
        s0 = self._stretch[self._p[0] >> 4][base]
        total, inputs = np.zeros(base.size, np.int64), []
        for context, weight, p, n in zip(others, self._weights, self._p[1:], self._n[1:]):
            x = (self._stretch[p[context] >> 4] - s0) * ((n[context] << 8) // (n[context] + 2)) >> 8
            inputs.append(x)
            total += x * weight
        p1 = self._squash[np.clip(s0 + (total >> 16), -STRETCH_LIMIT, STRETCH_LIMIT) + STRETCH_LIMIT]
        bits = np.array(coder.code_all([] if bits is None else bits.tolist(), p1.tolist()), np.int64)
        # A large batch's gradients are scaled down, lest the weights overshoot.
        error = ((bits << PROBABILITY_BITS) - p1) * self._rate * _BATCH // max(bits.size, _BATCH)
        for i, x in enumerate(inputs):
            self._weights[i] += int((x * error >> 18).sum())
        start = int(self._p[0][base[0]]) if base.size else 0
        for context, p, n in zip(contexts, self._p, self._n):
            self._learn(p, n, context, bits, start)
        return bits

    def _learn(self, p: np.ndarray, n: np.ndarray, context: np.ndarray, bits: np.ndarray, start: int) -> None:
        seen = np.bincount(context, minlength=p.size)
        ones = np.bincount(context[bits != 0], minlength=p.size)
        touched = np.flatnonzero(seen)
        m, k, count = seen[touched], ones[touched], n[touched]
        before = np.where(count == 0, start, p[touched])
        p[touched] = (before * (2 * count + 3) + k * (2 * _ONE - 2)) // (2 * count + 3 + 2 * m)
        n[touched] = np.minimum(count + m, self._limit)
