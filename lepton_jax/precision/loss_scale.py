"""Loss scaling: lift small gradients into float16's range, and skip the steps that overflow."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.precision.fp8 import Amax


class LossScaleState(NamedTuple):
    """What loss scaling remembers; settings are in the dataclass, so that no checkpoint and no jit can change them.

    Attributes:
      scale: float32 scalar that the loss is multiplied by.
      finite: int32 scalar, finite steps since the scale last changed.
      skipped: int32 scalar, steps skipped so far.
    """

    scale: Array
    finite: Array
    skipped: Array


class LossScale(Protocol):
    """How the scale begins and goes on."""

    def init(self) -> LossScaleState:
        """The state of the first step."""
        ...

    def update(self, state: LossScaleState, finite: Array) -> LossScaleState:
        """The state after a step whose gradients were all finite, or not."""
        ...


class _Counting:
    """A scale that stays, of which only steps are counted."""

    @property
    def _first(self) -> float:
        return 1.0

    def init(self) -> LossScaleState:
        """The state of the first step."""
        return LossScaleState(jnp.float32(self._first), jnp.int32(0), jnp.int32(0))

    def update(self, state: LossScaleState, finite: Array) -> LossScaleState:
        """Count."""
        skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
        return state._replace(finite=jnp.where(finite, state.finite + 1, 0).astype(jnp.int32), skipped=skipped)


@checked
@dataclass(frozen=True, kw_only=True)
class NoScale(_Counting):
    """Leave the loss as it is, but skip the steps that are not finite, and count them.

    Example:
      >>> NoScale().init().scale.item()
      1.0
    """


@checked
@dataclass(frozen=True, kw_only=True)
class StaticScale(_Counting):
    """Multiply the loss by one number throughout.

    Args:
      scale: positive; powers of two change no bit of a gradient that stays in range.

    Raises:
      ValueError: if it is not positive and finite.

    Example:
      >>> StaticScale(scale=128.0).init().scale.item()
      128.0
    """

    scale: float = 2.0**15

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"StaticScale: scale must be positive and finite; got {self.scale}.")

    @property
    def _first(self) -> float:
        return self.scale


@checked
@dataclass(frozen=True, kw_only=True)
class DynamicScale(_Counting):
    """Raise the scale after `period` finite steps in a row, lower it at every step that is not finite.

    Finite for the `period`-th time: ``scale = min(scale * factor, ceiling)``, and the count begins again. Not finite:
    ``scale = max(scale / factor, floor)``, and the count begins again.

    Args:
      initial: the first scale.
      period: finite steps before it is raised, at least 1.
      factor: above 1; a power of two keeps every gradient's bits.
      floor: the scale never falls below it.
      ceiling: nor rises above it.

    Raises:
      ValueError: for settings out of range, all at once.

    Example:
      >>> scaling = DynamicScale(initial=16.0, period=2, floor=8.0)
      >>> state, seen = scaling.init(), []
      >>> for finite in (False, False, True, True, True):
      ...     state = scaling.update(state, jnp.array(finite))
      ...     seen.append(state.scale.item())
      >>> seen, state.skipped.item()
      ([8.0, 8.0, 8.0, 16.0, 16.0], 2)

    Source: Micikevicius et al. 2018, section 3.2; Apex's and PyTorch's GradScaler begin at 2**16 with a period of 2000.
    """

    initial: float = 2.0**15
    period: int = 2000
    factor: float = 2.0
    floor: float = 1.0
    ceiling: float = 2.0**24

    def __post_init__(self) -> None:
        check_whole("DynamicScale: period", self.period, 1)
        with collect("DynamicScale") as problems:
            if not 1 < self.factor < float("inf"):
                problems.append(f"factor: must be above 1; got {self.factor}")
            if not 0 < self.floor <= self.initial <= self.ceiling < float("inf"):
                problems.append(
                    "0 < floor <= initial <= ceiling is required; "
                    f"got floor {self.floor}, initial {self.initial}, ceiling {self.ceiling}"
                )

    @property
    def _first(self) -> float:
        return self.initial

    def update(self, state: LossScaleState, finite: Array) -> LossScaleState:
        """Count, and raise or lower the scale."""
        state = super().update(state, finite)
        due = state.finite >= self.period
        raised = jnp.minimum(state.scale * self.factor, self.ceiling)
        lowered = jnp.maximum(state.scale / self.factor, self.floor)
        scale = jnp.where(finite, jnp.where(due, raised, state.scale), lowered)
        return state._replace(scale=scale.astype(jnp.float32), finite=jnp.where(due, 0, state.finite).astype(jnp.int32))


@checked
def scaled(loss: Array, state: LossScaleState) -> Array:
    """Return the loss to differentiate: ``loss * scale``, in float32 at least.

    Example:
      >>> scaled(jnp.float16(2), StaticScale(scale=2.0**16).init())
      Array(131072., dtype=float32)
    """
    return loss.astype(jnp.promote_types(loss.dtype, jnp.float32)) * state.scale


@checked
def unscaled(grads: PyTree, state: LossScaleState) -> PyTree:
    """Return the gradients of the loss itself, before anything looks at their size: ``grads / scale``, in their own dtypes.

    Histories of eight-bit dots (`Amax`) are no gradients, and stay.

    Example:
      >>> unscaled({"w": jnp.float32(12)}, StaticScale(scale=4.0).init())["w"].item()
      3.0
    """

    def divide(leaf: Any) -> Any:
        if not paths.is_floating(leaf):  # a history too
            return leaf
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return (wide / state.scale.astype(wide.dtype)).astype(leaf.dtype)

    return jax.tree.map(divide, grads, is_leaf=lambda node: isinstance(node, Amax))


@checked
def all_finite(tree: PyTree) -> Array:
    """Return whether no floating leaf has a NaN or an infinity: a boolean scalar.

    Example:
      >>> all_finite({"a": jnp.ones(2), "b": jnp.array([jnp.inf])}).item()
      False
    """
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if paths.is_floating(leaf)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


@checked
def keep_unless(finite: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return `new` if finite, else `old`, leaf by leaf, random keys included.

    Example:
      >>> keep_unless(jnp.array(False), {"w": jnp.array([jnp.nan])}, {"w": jnp.array([1.0])})["w"].tolist()
      [1.0]
    """
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
