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
        # The tables of all contexts are one, so that one operation looks into all of them.
        self._begin = np.cumsum([0, *sizes[:-1]], dtype=np.int64)[:, None]
        self._p, self._n = np.full(sum(sizes), _ONE >> 1, np.int64), np.zeros(sum(sizes), np.int64)
        self._weights = np.full((len(sizes) - 1, 1), _ONE * 5 // (4 * (len(sizes) - 1)), np.int64)
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
        places = np.stack(contexts) + self._begin
        stretched = self._stretch[self._p[places] >> 4]
        counts = self._n[places[1:]]
        inputs = (stretched[1:] - stretched[0]) * ((counts << 8) // (counts + 2)) >> 8
        total = stretched[0] + ((inputs * self._weights).sum(0) >> 16)
        p1 = self._squash[np.clip(total, -STRETCH_LIMIT, STRETCH_LIMIT) + STRETCH_LIMIT]
        bits = np.array(coder.code_all([] if bits is None else bits.tolist(), p1.tolist()), np.int64)
        # A large batch's gradients are scaled down, lest the weights overshoot.
        error = ((bits << PROBABILITY_BITS) - p1) * self._rate * _BATCH // max(bits.size, _BATCH)
        self._weights += (inputs * error >> 18).sum(1, keepdims=True)
        self._learn(places, bits)
        return bits

    def _learn(self, places: np.ndarray, bits: np.ndarray) -> None:
        if not bits.size:
            return
        seen = np.bincount(places.reshape(-1), minlength=self._p.size)
        ones = np.bincount(places[:, bits != 0].reshape(-1), minlength=self._p.size)
        touched = np.flatnonzero(seen)
        m, k, count = seen[touched], ones[touched], self._n[touched]
        before = np.where(count == 0, self._p[places[0, 0]], self._p[touched])
        self._p[touched] = (before * (2 * count + 3) + k * (2 * _ONE - 2)) // (2 * count + 3 + 2 * m)
        self._n[touched] = np.minimum(count + m, self._limit)
