"""The rank that empirical variational Bayes finds in a noisy matrix."""

import dataclasses

import numpy as np
from scipy import optimize

from lepton_jax.core.arguments import checked
from lepton_jax.lowrank.ranks.rule import Spectrum, SpectrumRule, check_multiple

_CANDIDATES = 200
_PRECISION = 1e-30
"""Squared singular values below this share of the largest are rounding."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evbmf(SpectrumRule):
    """Take the rank of the global analytic solution of empirical variational Bayesian matrix factorization.

    ``W = U V + noise`` of unknown variance, estimated by the free energy; a component stays if its singular value is above
    ``sqrt(M sigma^2 (1 + t) (1 + a / t))`` with ``a = L / M`` (L the smaller side) and t the zero of
    ``f(t) + f(t / a)``, ``f(z) = log(z + 1) / z - 1/2``. At least 1. The rank of stacked layers is the largest
    of theirs.

    Args:
      weaken: how far to go back from there to the largest rank, in [0, 1]: ``r + weaken * (largest - r)``. What was trained for
        long keeps much that looks like noise, and loses by the ranks found.
      multiple: of what ranks shall be multiples, where one fits; rounded up.

    Raises:
      ValueError: for settings out of range.
      TypeError: of `ranks`, inside jit, or for a method whose error no singular values tell.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank.svd import Svd
      >>> rng = np.random.default_rng(0)
      >>> noisy = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 40)) + 0.1 * rng.normal(size=(60, 40))
      >>> Evbmf().ranks({"a": jnp.asarray(noisy)}, Svd())
      {'a': 3}

    Source: Nakajima, Sugiyama, Babacan, Tomioka 2013, "Global analytic solution of fully-observed variational Bayesian matrix
    factorization", theorem 2 and corollary 1 for the threshold, equation 30 for the free energy; for choosing ranks of layers,
    Kim et al. 2016; for going back, Gusak et al. 2019, "Automated multi-stage compression of neural networks". The threshold's
    t is solved for, not taken from the approximation 2.5129 sqrt(a).
    """

    weaken: float = 0.0
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weaken <= 1:
            raise ValueError(f"Evbmf: weaken must be in [0, 1]; got {self.weaken}.")
        check_multiple("Evbmf", self.multiple)

    def choose(self, spectrum: Spectrum) -> int:
        layers = spectrum.values.reshape(-1, spectrum.values.shape[-1])
        found = max(evbmf_rank(layer, spectrum.long) for layer in layers)
        return round(found + self.weaken * (layers.shape[-1] - found))


def evbmf_rank(values: np.ndarray, long: int) -> int:
    """Return how many singular values are more than noise.

    Args:
      values: all singular values of a matrix, largest first, float64 ``[L]``.
      long: the matrix's longer side M, at least L.

    Example:
      >>> evbmf_rank(np.array([9.0, 8.0, 1.1, 1.0, 0.9, 0.8]), 6)
      2
    """
    short = len(values)
    if values[0] <= 0:
        return 0
    alpha = short / long
    tau = threshold_tau(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    squares = np.maximum(values**2, _PRECISION * values[0] ** 2)
    # At most so many components can be more than noise, so the rest bound its variance from below.
    most = min(int(np.ceil(short / (1 + alpha))) - 1, short - 1)
    low = max(squares[most] / (long * edge), squares[most:].mean() / long)
    high = squares.sum() / (short * long)
    if not low < high:
        return int(np.sum(squares > long * low * edge))
    grid = np.geomspace(low, high, _CANDIDATES)
    energies = [free_energy(variance, squares, long, edge) for variance in grid]
    best = int(np.argmin(energies))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _CANDIDATES - 1)])
    found = optimize.minimize_scalar(free_energy, bounds=bounds, args=(squares, long, edge), method="bounded")
    variance = found.x if found.fun < energies[best] else grid[best]
    return int(np.sum(squares > long * variance * edge))


def free_energy(variance: float, squares: np.ndarray, long: int, edge: float) -> float:
    """Return the free energy of a noise variance, up to constants, every component at its best.

    Args:
      variance: of the noise.
      squares: all squared singular values, ``[L]``.
      long: the longer side M.
      edge: squared singular values over ``M variance`` above it are components.

    Example:
      >>> free_energy(1.0, np.array([1.0]), 1, 9.0)
      1.0

    Source: Nakajima et al. 2013, equation 30 and below, divided by M.
    """
    alpha = len(squares) / long
    x = squares / (long * variance)
    noise, kept = x[x <= edge], x[x > edge]
    shifted = kept - (1 + alpha)
    tau = (shifted + np.sqrt(shifted**2 - 4 * alpha)) / 2
    components = kept - tau + np.log((tau + 1) / kept) + alpha * np.log(tau / alpha + 1)
    return float(np.sum(noise - np.log(noise)) + np.sum(components))


def threshold_tau(alpha: float) -> float:
    """Return the zero of ``f(t) + f(t / alpha)``, ``f(z) = log(z + 1) / z - 1/2``.

    Args:
      alpha: shorter side over longer, in (0, 1].

    Example:
      >>> round(threshold_tau(1.0), 4)
      2.5129
    """

    def balance(tau: float) -> float:
        return np.log1p(tau) / tau + np.log1p(tau / alpha) * alpha / tau - 1

    return float(optimize.brentq(balance, 1e-9, 10.0))
