"""Whether a split model is the model: bit by bit, and where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.facts import facts_of
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.program import Program, flat_program


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """How a split model compares with the whole one, both compiled.

    Attributes:
      elements: of all outputs.
      bits_differ: how many of them are not the same bits.
      largest: the largest difference, over the largest magnitude of that output.
      by_cut: how many differ if the model is cut there alone, for every cut; all 0 if none differ.

    Example:
      >>> print(Verified(elements=10, bits_differ=0, largest=0.0, by_cut=(0,)))
      0 of 10 elements differ: the stages give the same bits as the whole.
    """

    elements: int
    bits_differ: int
    largest: float
    by_cut: tuple[int, ...]

    def __str__(self) -> str:
        if not self.bits_differ:
            return f"0 of {self.elements} elements differ: the stages give the same bits as the whole."
        found = [f"{count} at cut {place}" for place, count in enumerate(self.by_cut) if count]
        where = ", ".join(found) or "none at one alone"
        return (
            f"{self.bits_differ} of {self.elements} elements differ, by {self.largest:.1e} of the largest at most: {where}. "
            "The compiler rounds otherwise where it sees both sides of a cut."
        )


@checked
def join(plan: Plan, fns: Sequence[Callable[..., Any]], parts: Sequence[Mapping[Path, Array]]) -> Callable[..., Any]:
    """Return one function of the inputs that runs the stages one after another.

    Args:
      plan: of the stages.
      fns: the stages, or what became of them: ``fn(part, *carried) -> carried``.
      parts: their variables.

    Raises:
      ValueError: for another number of functions or parts.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net, v, x = lambda v, x: jnp.sin(x * v["a"]) + v["b"], {"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.zeros(2)
      >>> made = stages.plan(net, v, x, count=2)
      >>> stages.join(made, made.stages(net), made.split(v))(x).tolist()
      [1.0, 1.0]
    """
    if not len(fns) == len(parts) == len(plan):
        raise ValueError(f"join: {len(plan)} functions and parts are needed, one a stage; got {len(fns)} and {len(parts)}.")

    def joined(*inputs: Any) -> Any:
        carried = inputs
        for fn, part in zip(fns[:-1], parts[:-1]):
            carried = fn(part, *carried)
        return fns[-1](parts[-1], *carried)

    return joined


@checked
def verify(plan: Plan, apply: Apply, variables: PyTree, *inputs: Any) -> Verified:
    """Compare the compiled model with its stages, compiled one by one.

    Args:
      plan: of the model.
      apply: the function.
      variables: its variables.
      *inputs: its inputs.

    Returns:
      the comparison; it prints.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import stages
      >>> net, v, x = (
      ...     lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"],
      ...     {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))},
      ...     jnp.ones((1, 2)),
      ... )
      >>> stages.verify(stages.plan(net, v, x, count=2), net, v, x).bits_differ
      0
    """
    whole = jax.tree.leaves(jax.jit(apply)(variables, *inputs))
    fns = [jax.jit(fn) for fn in plan.stages(apply)]
    split = jax.tree.leaves(join(plan, fns, plan.split(variables))(*inputs))
    counts = [differ(a, b) for a, b in zip(whole, split, strict=True)]
    total, by_cut = sum(counts), [0] * len(plan.cuts)
    if total and len(plan.cuts) > 1:
        program = flat_program(apply, variables, inputs, plan.steps)
        for place, cut in enumerate(plan.cuts):
            halves = _halves(plan, program, cut)
            two = join(halves, [jax.jit(fn) for fn in halves.stages(apply)], halves.split(variables))(*inputs)
            by_cut[place] = sum(differ(a, b) for a, b in zip(whole, jax.tree.leaves(two)))
    if total and len(plan.cuts) == 1:
        by_cut = [total]
    return Verified(
        elements=sum(int(np.size(_plain(a))) for a in whole),
        bits_differ=total,
        largest=max((_far(a, b) for a, b in zip(whole, split)), default=0.0),
        by_cut=tuple(by_cut),
    )


def _halves(plan: Plan, program: Program, cut: int) -> Plan:
    """The plan of two stages that has one of the cuts."""
    return dataclasses.replace(plan, cuts=(cut,), stages_of=facts_of(program, (cut,)))


def _plain(value: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def differ(a: Any, b: Any) -> int:
    """How many elements are not the same bits; of other shapes or dtypes, all."""
    a, b = _plain(a), _plain(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return max(a.size, b.size, 1)
    bits = (
        one.reshape(-1, 1).view(np.uint8).reshape(one.size, -1) for one in (np.ascontiguousarray(a), np.ascontiguousarray(b))
    )
    return int(np.not_equal(*bits).any(1).sum()) if a.size else 0


def _far(a: Any, b: Any) -> float:
    a, b = (_plain(one).astype(np.float64, copy=False) for one in (a, b))
    if a.shape != b.shape or not a.size:
        return 0.0
    far = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), 0.0)
    return float(far.max() / max(np.abs(np.where(np.isfinite(a), a, 0)).max(), np.finfo(np.float32).tiny))
