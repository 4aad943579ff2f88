"""Methods that make a network sparse, as settings of a study; times are fractions of the training they are used in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import optax

from experiments.methods import KERNELS
from lepton_jax import identity, prune, schedules
from lepton_jax.errors import check_fraction
from lepton_jax.pruning.allocation import erk, uniform
from lepton_jax.pruning.criteria import Random
from lepton_jax.pruning.sparse_training import FixedMasksState, ac_dc, fixed_masks, masked_moments, rigl, set_
from lepton_jax.transform import Transform
from lepton_jax.typing import Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What a method may look at when it begins.

    Args:
      steps: of the training to come.
      key: of the run, for what is random.
      apply: ``apply(params, inputs) -> logits`` in evaluation mode.
      loss: ``loss(params) -> scalar`` on some training examples.
      fresh: ``fresh(key) -> params``, another initialisation.
      inputs: an example of the inputs.
    """

    steps: int
    key: Array
    apply: Callable[[PyTree, Array], Array]
    loss: Callable[[PyTree], Array]
    fresh: Callable[[Array], PyTree]
    inputs: Any


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

    def build(self, scene: Scene) -> Transform:
        """Return the transform; may be traced, its key and weights too."""
        raise TypeError(f"{type(self).__name__} must define build")

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """Return the optimiser to train with."""
        return tx


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(SparseMethod):
    """No method: the reference."""

    def build(self, scene: Scene) -> Transform:
        return identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot(SparseMethod):
    """Prune by magnitude at once, then train what is left (Han et al. 2015)."""

    scope: Literal["layer", "global"] = "global"
    """One threshold a layer, or one for all."""

    def build(self, scene: Scene) -> Transform:
        return found_at_init(prune(self.sparsity, scope=self.scope, select=KERNELS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradual(SparseMethod):
    """Prune by magnitude little by little (Zhu and Gupta 2017)."""

    stacks: ClassVar[bool] = False  # the schedule is the transform's, not its state's

    begin: float = 0.1
    """Where the sparsity begins to rise, as a fraction of the training."""
    end: float = 0.7
    """Where it has arrived."""
    spread: Literal["uniform", "erk", "global"] = "global"
    """Every layer loses the same fraction, or what ERK gives it, or what one threshold for all takes."""
    interval: int = 20
    """Steps between two mask updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch("Gradual", self.begin, self.end)

    def build(self, scene: Scene) -> Transform:
        begin = int(self.begin * scene.steps)
        schedule = schedules.polynomial(self.sparsity, begin, max(int(self.end * scene.steps), begin + 1))
        return prune(schedule, select=KERNELS, interval=self.interval, **_spread(self.spread))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(SparseMethod):
    """Train a random sparse network, whose layers have what ERK gives them, and leave it as it is."""

    def build(self, scene: Scene) -> Transform:
        return found_at_init(prune(self.sparsity, criterion=Random(key=scene.key), allocation=erk, select=KERNELS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewired(SparseMethod):
    """What `Set` and `Rigl` share: ERK, and an exchange of weights that decays along a cosine."""

    interval: int = 100
    """Steps between two exchanges."""
    fraction: float = 0.3
    """Of the weights that are left, exchanged at first."""
    end: float = 0.75
    """Where the exchange ends, as a fraction of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch(type(self).__name__, 0, self.end)

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return masked_moments(tx)

    def _settings(self, scene: Scene) -> dict[str, Any]:
        end = max(int(self.end * scene.steps), 1)
        return {"end": end, "interval": self.interval, "fraction": self.fraction, "select": KERNELS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set(Rewired):
    """Sparse evolutionary training (Mocanu et al. 2018): what grows is random."""

    def build(self, scene: Scene) -> Transform:
        return set_(self.sparsity, scene.key, **self._settings(scene))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rigl(Rewired):
    """RigL (Evci et al. 2020): what has the largest gradient grows."""

    def build(self, scene: Scene) -> Transform:
        return rigl(self.sparsity, scene.key, **self._settings(scene))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcDc(SparseMethod):
    """Compressed and dense phases in turn (Peste et al. 2021)."""

    stacks: ClassVar[bool] = False

    begin: float = 0.1
    """Where the first compressed phase begins, as a fraction of the training."""
    end: float = 0.7
    """From here on compressed for good."""
    phase: float = 0.1
    """Length of each phase."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stretch("AcDc", self.begin, self.end)
        check_stretch("AcDc: phase", 0, self.phase)

    def build(self, scene: Scene) -> Transform:
        begin, length = int(self.begin * scene.steps), max(int(self.phase * scene.steps), 1)
        end = max(int(self.end * scene.steps), begin + 1)
        return ac_dc(self.sparsity, begin=begin, end=end, compressed=length, dense=length, select=KERNELS)

    def wrap(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return masked_moments(tx)


_FIXED = fixed_masks({})
"""One for all, so that what trains under fixed masks is compiled once."""


def found_at_init(pruned: Transform) -> Transform:
    """Return a transform whose masks are those that another one makes at `init`, and stay.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = found_at_init(prune(0.5))
      >>> transform.init({"kernel": jnp.array([[1.0, -2.0]])})[1].masks["kernel"].tolist()
      [[False, True]]
    """

    def init(params: PyTree) -> tuple[PyTree, FixedMasksState]:
        params, state = pruned.init(params)
        return fixed_masks(state.masks).init(params)

    return _FIXED._replace(init=init)


def check_stretch(name: str, begin: float, end: float) -> None:
    """Raise unless ``0 <= begin < end <= 1``."""
    if not 0 <= begin < end <= 1:
        raise ValueError(f"{name}: 0 <= begin < end <= 1, fractions of the training; got begin={begin}, end={end}.")


def _spread(spread: Literal["uniform", "erk", "global"]) -> dict[str, Any]:
    return {"scope": "global"} if spread == "global" else {"allocation": erk if spread == "erk" else uniform}
