"""Methods that find masks before they train, as settings of a study: one-shot pruning, and pruning at initialisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.common.methods import KERNELS
from experiments.common.sparse_methods import SparseMethod, Spread, spread_options
from lepton_jax import prune
from lepton_jax.core import paths
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.pruning.allocation import erk
from lepton_jax.pruning.criteria import Criterion, Grasp, Inverted, Magnitude, Random, Snip, SynFlow
from lepton_jax.pruning.rounds import iterative_masks
from lepton_jax.pruning.sanity import shuffle_masks
from lepton_jax.pruning.sparse_training import FixedMasksState, fixed_masks

Ablation = Literal["none", "shuffle", "reinit", "invert"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What masks may be found by.

    Args:
      apply: ``apply(params, inputs) -> logits`` in evaluation mode.
      loss: ``loss(params, temperature) -> scalar`` on some training examples; the logits are divided by the temperature.
      fresh: ``fresh(key) -> params``, another initialisation.
      inputs: an example of the inputs.
    """

    apply: Callable[[PyTree, Array], Array]
    loss: Callable[[PyTree, float], Array]
    fresh: Callable[[Array], PyTree]
    inputs: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFinder(SparseMethod):
    """Base of the methods that find masks before they train, and keep them."""

    @property
    def in_rounds(self) -> bool:
        """Whether `masks` calls compiled functions of its own, many times, and is not compiled as a whole."""
        return False

    def masks(self, scene: Scene, params: PyTree, key: Array) -> dict[Path, Array]:
        """Return the masks of one run."""
        raise TypeError(f"{type(self).__name__} must define masks")

    def build(self, steps: int, key: Array) -> Transform:
        def init(params: PyTree) -> tuple[PyTree, FixedMasksState]:
            kept = {path: jnp.ones(leaf.shape, bool) for path, leaf in paths.select(params, KERNELS).items()}
            return params, FixedMasksState(kept)  # until the run's own are found

        return _FIXED._replace(init=init)


_FIXED = fixed_masks({})
"""One for all, so that what trains under fixed masks is compiled once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot(MaskFinder):
    """Prune by magnitude at once, then train what is left (Han et al. 2015)."""

    spread: Spread = "global"
    """Every layer loses the same fraction, or what ERK gives it, or what one threshold for all takes."""

    def masks(self, scene: Scene, params: PyTree, key: Array) -> dict[Path, Array]:
        return prune(self.sparsity, select=KERNELS, **spread_options(self.spread)).init(params)[1].masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(MaskFinder):
    """Train a random sparse network, whose layers have what ERK gives them, and leave it as it is."""

    def masks(self, scene: Scene, params: PyTree, key: Array) -> dict[Path, Array]:
        return prune(self.sparsity, criterion=Random(key=key), allocation=erk, select=KERNELS).init(params)[1].masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtInit(MaskFinder):
    """Prune before training by what a criterion says, with the sanity ablations of Frankle et al. 2021."""

    criterion: Literal["magnitude", "random", "snip", "grasp", "synflow"] = "snip"
    """What scores the weights."""
    ablation: Ablation = "none"
    """Permute each layer's mask; take the masks of another initialisation; keep what the criterion would remove."""
    rounds: int = 1
    """Prune little by little, scoring anew."""

    @property
    def in_rounds(self) -> bool:
        return self.rounds > 1

    def masks(self, scene: Scene, params: PyTree, key: Array) -> dict[Path, Array]:
        own, fresh, shuffle = jax.random.split(key, 3)
        # Old weights under masks of new ones are, in distribution, what new weights under masks of old ones are.
        seen = jax.jit(scene.fresh)(fresh) if self.ablation == "reinit" else params
        criterion = _CRITERIA[self.criterion](scene, own)
        if self.ablation == "invert":
            criterion = Inverted(criterion=criterion)
        found = iterative_masks(criterion, seen, self.sparsity, self.rounds, select=KERNELS, progress=False)
        return shuffle_masks(shuffle, found) if self.ablation == "shuffle" else found


_CRITERIA: dict[str, Callable[[Scene, Array], Criterion]] = {
    "magnitude": lambda scene, key: Magnitude(),
    "random": lambda scene, key: Random(key=key),
    "snip": lambda scene, key: Snip(loss=lambda params: scene.loss(params, 1.0)),
    "grasp": lambda scene, key: Grasp(loss=lambda params: scene.loss(params, _GRASP_TEMPERATURE)),
    "synflow": lambda scene, key: SynFlow(apply=scene.apply, inputs=scene.inputs),
}
_GRASP_TEMPERATURE = 200.0
"""As in its paper."""
