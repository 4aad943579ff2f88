"""Rotary positions, and the ways in which published decoders stretch them to longer texts."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Turn the pair i of a head of d values at position p by the angle ``p * theta^(-2 i / d)``, i from 0 to d/2 - 1.

    Args:
      theta: the base; the longest wave has almost ``2 pi theta`` positions.

    Raises:
      ValueError: for a base that is not positive and finite.

    Example:
      >>> cos, sin = Rope().turns(jnp.arange(2), 4)
      >>> cos.shape, cos[0].tolist(), sin[0].tolist()
      ((2, 2), [1.0, 1.0], [0.0, 0.0])

    Source: J. Su et al., RoFormer, 2021, equation 34.
    """

    theta: float = 10_000.0

    def __post_init__(self) -> None:
        with collect(type(self).__name__) as problems:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if type(value) in (int, float) and not 0 < value < math.inf:
                    problems.append(f"{field.name} must be positive and finite; got {value!r}")

    def rates(self, size: int, length: Any) -> Any:
        """Return the angle of every pair for one position more.

        Args:
          size: d, even.
          length: of the whole text: an integer, which may be traced.

        Returns:
          float32 ``[d/2]``; an array of NumPy where it does not depend on the length.
        """
        return self._slow(self._plain(size)).astype(np.float32)

    @property
    def magnitude(self) -> float:
        """What turned values are multiplied by."""
        return 1.0

    def turns(self, positions: Array, size: int) -> tuple[Array, Array]:
        """Return cosine and sine of every pair's angle at every position.

        Args:
          positions: integers ``[L]``, the last of them the largest.
          size: d, even.

        Returns:
          ``(cos, sin)``, float32 ``[L, d/2]``.
        """
        rates = self.rates(size, positions[-1] + 1)
        angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(rates)[None]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return (cos, sin) if self.magnitude == 1 else (cos * self.magnitude, sin * self.magnitude)

    def _plain(self, size: int) -> np.ndarray:
        return self.theta ** -(np.arange(0, size, 2) / size)

    def _slow(self, rates: np.ndarray) -> np.ndarray:
        """The rates as this kind changes them, in float64."""
        return rates


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Turn as `Rope` at position ``p / factor``.

    Example:
      >>> LinearRope(factor=4.0).rates(2, 1).tolist()
      [0.25]

    Source: S. Chen et al., Extending context window of large language models via position interpolation, 2023, equation 3.
    """

    factor: float

    def _slow(self, rates: np.ndarray) -> np.ndarray:
        return rates / self.factor


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """Turn as `Rope` with a base that grows with the text, once this is longer than `original_length`, L0.

    ``theta (factor L / L0 - (factor - 1))^(d / (d - 2))`` for a text of L > L0 tokens. Keys in a cache stay as they were
    turned.

    Example:
      >>> rope = DynamicRope(factor=2.0, original_length=8)
      >>> bool((rope.rates(4, 8) == Rope().rates(4, 8)).all()), bool((rope.rates(4, 9) < Rope().rates(4, 9)).any())
      (True, True)

    Source: "NTK-aware" scaling in its dynamic form; B. Peng et al., YaRN, 2023, section 3.3.
    """

    factor: float
    original_length: int

    def rates(self, size: int, length: Any) -> Any:
        first = self.original_length
        longer = jnp.maximum(jnp.asarray(length), first).astype(jnp.float32)
        growth = (self.factor * longer / first - (self.factor - 1)) ** (size / max(size - 2, 1))
        return (self.theta * growth) ** -(jnp.arange(0, size, 2, dtype=jnp.float32) / size)


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Turn long waves ``factor`` times slower, short ones as they are, those between by a mean of both.

    Of a wave of n positions and ``r = original_length / n``: rate / factor where ``r < low``, the rate where ``r > high``, else
    ``(1 - s) rate / factor + s rate`` with ``s = (r - low) / (high - low)``.

    Args:
      theta: as in `Rope`.
      factor: how many times slower.
      low, high: waves in the text that the model was trained on first.
      original_length: tokens of that text.

    Example:
      >>> rope = Llama3Rope(factor=8.0, low=1.0, high=4.0, original_length=64)
      >>> (Rope().rates(4, 1) / rope.rates(4, 1)).tolist()
      [1.0, 8.0]

    Source: A. Grattafiori et al., The Llama 3 herd of models, 2024, in the form of the code published with Llama 3.1.
    """

    factor: float
    low: float
    high: float
    original_length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise ValueError(f"Llama3Rope: low must be less than high; got {self.low} and {self.high}.")

    def _slow(self, rates: np.ndarray) -> np.ndarray:
        waves = self.original_length * rates / (2 * math.pi)
        share = np.clip((waves - self.low) / (self.high - self.low), 0, 1)
        return (1 - share) * rates / self.factor + share * rates


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """Turn long waves ``factor`` times slower, with a linear ramp over the pairs, and make turned values a little larger.

    Pair ``c(n) = d ln(original_length / (2 pi n)) / (2 ln theta)`` makes n waves in the original text. Rates are as they are up
    to pair ``c(fast)``, divided by the factor from ``c(slow)`` on, and a mean that changes linearly between.

    Args:
      theta: as in `Rope`.
      factor: how many times slower.
      original_length: tokens of the text that the model was trained on first.
      fast, slow: waves where the ramp begins and ends.
      whole: whether its ends are whole pairs, rounded outwards.
      scale: what cosine and sine are multiplied by; None: ``0.1 ln(factor) + 1``.

    Example:
      >>> rope = YarnRope(factor=4.0, original_length=64)
      >>> round(rope.magnitude, 4), (Rope().rates(8, 1) / rope.rates(8, 1)).tolist()[-1]
      (1.1386, 4.0)

    Source: B. Peng et al., YaRN, 2023, equations 17 to 25.
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True
    scale: float | None = None

    @property
    def magnitude(self) -> float:
        """What turned values are multiplied by."""
        return magnitude_of(self.factor) if self.scale is None else self.scale

    def _slow(self, rates: np.ndarray) -> np.ndarray:
        size = 2 * len(rates)

        def pair(waves: float) -> float:
            return size * math.log(self.original_length / (waves * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair(self.fast), pair(self.slow)
        low, high = (math.floor(low), math.ceil(high)) if self.whole else (low, high)
        low, high = max(low, 0), min(high, size - 1)
        share = np.clip((np.arange(len(rates)) - low) / ((high - low) or 0.001), 0, 1)
        return (1 - share) * rates + share * rates / self.factor


def magnitude_of(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's magnitude of turned values, ``0.1 weight ln(factor) + 1``; 1 for a factor up to 1.

    Example:
      >>> magnitude_of(1.0), round(magnitude_of(math.e), 3)
      (1.0, 1.1)
    """
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
