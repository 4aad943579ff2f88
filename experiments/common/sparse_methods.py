"""Methods that make a network sparse, as settings of a study; times are fractions of the training they are used in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.common.methods import KERNELS, check_stretch, stretch
from lepton_jax import identity, prune
from lepton_jax.core import paths, schedules
from lepton_jax.core.errors import check_fraction
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.pruning.allocation import erk, uniform
from lepton_jax.pruning.sparse_training import SurgeryState, ac_dc, dynamic_surgery, masked_moments, rigl, set_, soft_threshold

Spread = Literal["uniform", "erk", "global"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseMethod:
    """Base of the methods.

    Attributes:
      stacks: whether all that depends on the sparsity is in the transform's state, so that runs of several sparsities train
        in one program.
    """

    stacks: ClassVar[bool] = True

    sparsity: float = 0.0
    """Fraction of the kernels' weights removed; a study sets it."""

    def __post_init__(self) -> None:
        check_fraction(f"{type(self).__name__}: sparsity", self.sparsity)

    def build(self, steps: int, key: Array) -> Transform:
        """Return the transform for so many steps; called while a program is traced, for a key of all seeds at once."""
        raise TypeError(f"{type(self).__name__} must define build")

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Return the optimiser to train with."""
        return tx


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(SparseMethod):
    """No method: the reference."""

    def build(self, steps: int, key: Array) -> Transform:
        return identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(SparseMethod):
    """Base of the methods that change the masks in a part of the training, whose ends are fractions of it."""

    end: float = 0.7
    """From here on they stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch(type(self).__name__, self._begin, self.end)

    @property
    def _begin(self) -> float:
        """Where they begin to change, if it is not at once."""
        return getattr(self, "begin", 0.0)

    def stretch(self, steps: int) -> tuple[int, int]:
        """Return the first and the last step in which they change."""
        return stretch(self._begin, self.end, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradual(Timed):
    """Prune by magnitude little by little (Zhu and Gupta 2017)."""

    begin: float = 0.1
    """Where the sparsity begins to rise."""
    interval: int = 20
    """Steps between two mask updates."""
    spread: Spread = "global"
    """Every layer loses the same fraction, or what ERK gives it, or what one threshold for all takes."""

    def build(self, steps: int, key: Array) -> Transform:
        schedule = schedules.polynomial(self.sparsity, *self.stretch(steps))
        return prune(schedule, select=KERNELS, interval=self.interval, **spread_options(self.spread))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewired(Timed):
    """What `Set` and `Rigl` share: ERK, and an exchange of weights that decays along a cosine."""

    rule: ClassVar[Callable[..., Transform]]

    end: float = 0.75
    interval: int = 100
    """Steps between two exchanges."""
    fraction: float = 0.3
    """Of the weights that are left, exchanged at first."""

    def build(self, steps: int, key: Array) -> Transform:
        end = self.stretch(steps)[1]
        options = {"end": end, "interval": self.interval, "fraction": self.fraction, "select": KERNELS}
        return type(self).rule(self.sparsity, key, **options)

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return masked_moments(tx)


class Set(Rewired):
    """Sparse evolutionary training (Mocanu et al. 2018): what grows is random."""

    rule = staticmethod(set_)


class Rigl(Rewired):
    """RigL (Evci et al. 2020): what has the largest gradient grows."""

    rule = staticmethod(rigl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcDc(Timed):
    """Compressed and dense phases in turn (Peste et al. 2021); from the end on compressed for good."""

    begin: float = 0.1
    """Where the first compressed phase begins."""
    phase: float = 0.1
    """Length of each phase."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch("AcDc: phase", 0, self.phase)

    def build(self, steps: int, key: Array) -> Transform:
        begin, end = self.stretch(steps)
        length = max(int(self.phase * steps), 1)
        return ac_dc(self.sparsity, begin=begin, end=end, compressed=length, dense=length, select=KERNELS)

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return masked_moments(tx)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surgery(Timed):
    """Dynamic network surgery (Guo, Yao, Chen 2016); for a network that is trained already.

    The thresholds' c is the one that prunes the asked fraction of the kernels at once; what is spliced later follows.
    """

    end: float = 0.6
    interval: int = 20
    """Steps between two updates of the masks."""

    def build(self, steps: int, key: Array) -> Transform:
        end = self.stretch(steps)[1]

        def surgery(c: Any) -> Transform:
            return dynamic_surgery(c, key, end=end, interval=self.interval, select=KERNELS)

        def init(params: PyTree) -> tuple[PyTree, SurgeryState]:
            return surgery(self._c(list(paths.select(params, KERNELS).values()))).init(params)

        return surgery(0.0)._replace(init=init)

    def _c(self, kernels: list[Array]) -> Array:
        """Find c by bisection: the fraction below ``0.9 (mean + c std)`` rises with it."""
        sizes = [jnp.abs(kernel) for kernel in kernels]
        wanted = self.sparsity * sum(size.size for size in sizes)

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (ends[0] + ends[1]) / 2
            limits = [0.9 * jnp.maximum(jnp.mean(size) + middle * jnp.std(size), 0) for size in sizes]
            below = jnp.sum(jnp.stack([jnp.sum(size < limit) for size, limit in zip(sizes, limits)]))
            return jnp.where(below < wanted, middle, ends[0]), jnp.where(below < wanted, ends[1], middle)

        return jax.lax.fori_loop(0, 30, halve, (jnp.float32(-10), jnp.float32(30)))[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftThreshold(SparseMethod):
    """Soft threshold reparametrisation (Kusupati et al. 2020): a penalty on trained thresholds makes the network sparse."""

    stacks: ClassVar[bool] = False  # the penalty is the optimiser's

    penalties: Mapping[float, float] = dataclasses.field(default_factory=dict)
    """Asked sparsity -> weight of half the square of the thresholds before the sigmoid; to be found by trial."""
    initial: float = -5.0
    """Where they begin."""
    rate: float = 5.0
    """Factor on their learning rate: under adam a parameter moves by about one rate a step, and these have far to go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity and self.sparsity not in self.penalties:
            raise ValueError(f"SoftThreshold: penalties has none for a sparsity of {self.sparsity}; it has {self.penalties}.")

    def build(self, steps: int, key: Array) -> Transform:
        return soft_threshold(initial=self.initial, select=KERNELS)

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        penalty = optax.add_decayed_weights(self.penalties[self.sparsity], mask=_thresholds)
        return optax.chain(penalty, tx, optax.masked(optax.scale(self.rate), _thresholds))


def _thresholds(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda key_path, leaf: paths.path_str(key_path).endswith("/threshold"), params)


def spread_options(spread: Spread) -> dict[str, Any]:
    """Return what `prune` calls it."""
    return {"scope": "global"} if spread == "global" else {"allocation": erk if spread == "erk" else uniform}
