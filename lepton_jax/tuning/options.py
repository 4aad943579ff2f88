"""What may be done to a layer: bits, sparsity, rank; one choice is one of each; and to channels, which layers share."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect


class Option:
    """One kind of compression and the settings to try; the layer as it is comes with every kind.

    Example:
      >>> [isinstance(one, Option) for one in (Bits(4), Rank(0.5))], Bits(2, 4) == Bits(2, 4)
      ([True, True], True)
    """

    values: tuple[float, ...]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{value:g}' for value in self.values)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def choices(self) -> Iterator[Choice]:
        """Yield each setting as a choice of its own."""
        raise NotImplementedError


class Bits(Option):
    """Symmetric integers of these widths, with a scale for each output channel.

    Args:
      *bits: whole numbers from 2 to 8.

    Raises:
      ValueError: for none, or others.

    Example:
      >>> [str(choice) for choice in Bits(2, 4).choices()]
      ['2 bits', '4 bits']
    """

    def __init__(self, *bits: int) -> None:
        _check("Bits", bits, "whole numbers from 2 to 8", lambda one: one == int(one) and 2 <= one <= 8)
        self.values = bits

    def choices(self) -> Iterator[Choice]:
        """Yield one choice a width."""
        return (Choice(bits=int(bits)) for bits in self.values)


class Sparsity(Option):
    """These fractions of a layer's weights set to zero, the smallest.

    Args:
      *fractions: in (0, 1).

    Example:
      >>> [str(choice) for choice in Sparsity(0.5).choices()]
      ['50 % zeros']
    """

    def __init__(self, *fractions: float) -> None:
        _check("Sparsity", fractions, "fractions in (0, 1)", lambda one: 0 < one < 1)
        self.values = fractions

    def choices(self) -> Iterator[Choice]:
        """Yield one choice a fraction."""
        return (Choice(sparsity=float(fraction)) for fraction in self.values)


class NofM(Option):
    """n weights kept of every m along a layer's inputs.

    Args:
      n: how many stay.
      m: of how many.

    Example:
      >>> [str(choice) for choice in NofM(2, 4).choices()]
      ['2 of 4']
    """

    def __init__(self, n: int, m: int) -> None:
        _check("NofM", (n, m), "two whole numbers, 0 < n < m", lambda one: one == int(one) and one > 0 and n < m)
        self.values = (n, m)

    def choices(self) -> Iterator[Choice]:
        """Yield the one choice."""
        n, m = self.values
        yield Choice(kept=(int(n), int(m)))


class Rank(Option):
    """Two thin factors of these fractions of a layer's full rank, by the singular value decomposition.

    Args:
      *fractions: in (0, 1).

    Example:
      >>> [str(choice) for choice in Rank(0.25).choices()]
      ['rank 0.25 of full']
    """

    def __init__(self, *fractions: float) -> None:
        _check("Rank", fractions, "fractions in (0, 1), of the full rank", lambda one: 0 < one < 1)
        self.values = fractions

    def choices(self) -> Iterator[Choice]:
        """Yield one choice a fraction."""
        return (Choice(rank=float(fraction)) for fraction in self.values)


class Channels(Option):
    """These fractions of a group's channels removed, the least important by absolute weights, from all layers that share them.

    A group is what `lepton_jax.pruning.channels.plan` finds: channels tied by residuals, norms and concatenations go together.
    It is a unit of its own beside the layers: what it has removed changes what every layer of it costs.

    Args:
      *fractions: in (0, 1); at least one channel of a group stays.

    Example:
      >>> Channels(0.25, 0.5), list(Channels(0.25).choices())
      (Channels(0.25, 0.5), [])
    """

    def __init__(self, *fractions: float) -> None:
        _check("Channels", fractions, "fractions in (0, 1), of a group's channels", lambda one: 0 < one < 1)
        self.values = fractions

    def choices(self) -> Iterator[Choice]:
        """Yield nothing: no layer has a choice of its own."""
        return iter(())


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What is done to a layer; nothing by default.

    Args:
      bits: of its numbers; None: as they are.
      sparsity: fraction set to zero.
      kept: (n, m) for n kept of every m along the inputs; () for none.
      rank: below 1 a fraction of the full rank, from 1 on a rank; 0: no factors.

    Example:
      >>> str(Choice(bits=4, sparsity=0.5)), str(Choice()), str(Choice(rank=8, bits=8))
      ('4 bits, 50 % zeros', 'as it is', '8 bits, rank 8')
    """

    bits: int | None = None
    sparsity: float = 0.0
    kept: tuple[int, ...] = ()
    rank: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.bits} bits" if self.bits else ""]
        parts += [
            f"{100 * self.sparsity:g} % zeros" if self.sparsity else "",
            f"{self.kept[0]} of {self.kept[1]}" if self.kept else "",
        ]
        parts += [f"rank {self.rank:g}{' of full' if self.rank < 1 else ''}" if self.rank else ""]
        return ", ".join(filter(None, parts)) or "as it is"


def combinations(options: Sequence[Option]) -> list[Choice]:
    """Return every choice that options allow: a width or none, with one of zeros, n of m and rank, or none of these.

    Raises:
      ValueError: for no option at all.

    Example:
      >>> [str(choice) for choice in combinations([Bits(4), Rank(0.5)])]
      ['as it is', 'rank 0.5 of full', '4 bits', '4 bits, rank 0.5 of full']
    """
    if not options:
        raise ValueError(
            "options: give at least one of Bits(2, 4, 8), Sparsity(0.5, 0.8), NofM(2, 4), Rank(0.25), Channels(0.25); got none."
        )
    widths = [choice for option in options if isinstance(option, Bits) for choice in option.choices()]
    others = [choice for option in options if not isinstance(option, Bits) for choice in option.choices()]
    both = itertools.product([Choice(), *widths], [Choice(), *others])
    return list(dict.fromkeys(dataclasses.replace(other, bits=width.bits) for width, other in both))


def _check(name: str, values: Sequence[float], wanted: str, holds: object) -> None:
    assert callable(holds)
    with collect(f"{name}: takes {wanted}") as problems:
        if not values:
            problems.append("got none")
        for one in values:
            number = isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
            if not number or not holds(one):
                problems.append(f"got {one!r}")
