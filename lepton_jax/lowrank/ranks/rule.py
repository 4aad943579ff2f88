"""What rules for ranks have in common: spectra, rounding, checks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jax.core.errors import check_whole, collect, is_traced
from lepton_jax.core.typing import Array, Path
from lepton_jax.lowrank.method import Method, Rank, as_tuple

Ranks = dict[Path, Rank]
"""By path; a weight that is missing stays dense."""
Weights = Mapping[Path, Array]


class Spectrum:
    """The singular values of a matrix, or of a stack of them.

    Args:
      matrix: (*stack, m, n), concrete.

    Attributes:
      values: float64 (*stack, min(m, n)), largest first.
      long: the longer side.

    Example:
      >>> spectrum = Spectrum(np.diag([1.0, 2.0]))
      >>> spectrum.values.tolist(), spectrum.errors.tolist()
      ([2.0, 1.0], [5.0, 1.0, 0.0])
    """

    def __init__(self, matrix: Any) -> None:
        self.values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
        self.long = max(matrix.shape[-2:])

    @property
    def errors(self) -> np.ndarray:
        """The squared error of every rank from 0 to the shorter side, that of all stacked matrices together."""
        squares = np.sum(self.values.reshape(-1, self.values.shape[-1]) ** 2, axis=0)
        return np.append(np.cumsum(squares[::-1])[::-1], 0.0)


def has_spectra(method: Method) -> bool:
    """Whether singular values tell the error of a method.

    Example:
      >>> from lepton_jax.lowrank.svd import Svd
      >>> has_spectra(Svd()), has_spectra(Method())
      (True, False)
    """
    return type(method).matrices is not Method.matrices


def check_concrete(name: str, weights: Mapping[Path, Any]) -> None:
    """Raise if a weight is traced: a rank is a shape, and shapes are known before a program is compiled.

    Raises:
      TypeError: with the paths.

    Example:
      >>> check_concrete("Energy", {"kernel": np.ones((2, 2))})
    """
    with collect(f"{name}: ranks depend on the values of weights, which are not known inside jit", TypeError) as problems:
        problems.extend(
            f"{path}: traced. Choose the ranks before: low_rank(choose_ranks(params, rule).ranks)"
            for path, weight in weights.items()
            if is_traced(weight)
        )


class SpectrumRule:
    """Base of the rules that choose each of a method's ranks from the spectrum that it cuts.

    Its subclasses have a setting `multiple`: of what ranks shall be multiples; they are rounded up.
    """

    multiple: int

    def choose(self, spectrum: Spectrum) -> int:
        """Return a rank, not yet rounded."""
        raise TypeError(f"{type(self).__name__} does not say how it chooses")

    def ranks(self, weights: Weights, method: Method) -> Ranks:
        """Return ``{path: rank}``.

        Raises:
          TypeError: for traced weights, or a method without spectra.
        """
        name, methods = type(self).__name__, {path: method.at(path) for path in weights}
        check_concrete(name, weights)
        with collect(
            f"{name}: needs a method whose error singular values tell; Budget and Fraction need none", TypeError
        ) as bad:
            bad.extend(f"{path}: {type(mine).__name__}" for path, mine in methods.items() if not has_spectra(mine))
        ranks: Ranks = {}
        for path, weight in weights.items():
            largest = methods[path].max_rank(tuple(weight.shape))
            chosen = [self.choose(Spectrum(matrix)) for matrix in methods[path].matrices(weight)]
            ranks[path] = like(
                largest,
                [to_multiple(r, self.multiple, most, up=True) for r, most in zip(chosen, as_tuple(largest), strict=True)],
            )
        return ranks


def to_multiple(rank: int, multiple: int, largest: int, *, up: bool) -> int:
    """Round a rank to a multiple, 1 to `largest`; where no multiple fits below `largest`, keep within it.

    Example:
      >>> [to_multiple(rank, 8, 20, up=True) for rank in (0, 5, 9, 17)], [to_multiple(r, 8, 20, up=False) for r in (5, 20)]
      ([8, 8, 16, 20], [8, 16])
    """
    rounded = -(-rank // multiple) * multiple if up else rank // multiple * multiple
    return max(1, min(max(rounded, multiple), largest))


def like(largest: Rank, values: list[int]) -> Rank:
    """Return ranks in the form of a method's largest: a number, or a tuple of them."""
    return tuple(values) if isinstance(largest, tuple) else values[0]


def check_multiple(name: str, multiple: int) -> None:
    """Raise unless a multiple is a whole number from 1."""
    check_whole(f"{name}: multiple", multiple, 1)
