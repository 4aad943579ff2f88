"""Linear operations on a weight that is a sum: on each part, then added up."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array, Path
from lepton_jax.graph.trace import Equation
from lepton_jax.native.operands import Native

_LINEAR = {
    "broadcast_in_dim": (0,),
    "conv_general_dilated": (0, 1),
    "dot_general": (0, 1),
    "gather": (0,),
    "reshape": (0,),
    "squeeze": (0,),
    "transpose": (0,),
}
"""The operands in which an operation is linear, one at a time."""


@dataclass(frozen=True, eq=False)
class Total(Native):
    """A sum of weights of one shape, each an array or compressed."""

    parts: tuple[Any, ...]
    dtype: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape)

    def dense(self) -> Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        arrays = [part.dense() if isinstance(part, Native) else part for part in self.parts]
        return functools.reduce(jnp.add, [array.astype(wide) for array in arrays]).astype(self.dtype)

    def layers(self, length: int) -> Native | None:
        taken = [part.layers(length) if isinstance(part, Native) else part for part in self.parts]
        whole = all(part is not None and part.shape[:1] == (length,) for part in taken)
        return Total(tuple(taken), self.dtype, self.path) if whole else None


jax.tree_util.register_dataclass(Total, data_fields=["parts"], meta_fields=["dtype", "path"])


def run(
    eqn: Equation, values: Sequence[Any], one: Callable[[Equation, Sequence[Any]], Sequence[Any] | None]
) -> Sequence[Any] | None:
    """Run an operation on each part of the one sum among its operands; None if it is not linear in it.

    Args:
      eqn: any operation.
      values: its operands.
      one: runs it on operands without sums; None if it has no way to.
    """
    [place, *more] = [place for place, value in enumerate(values) if isinstance(value, Total)]
    if more or place not in _LINEAR.get(eqn.primitive, ()):
        return None
    total, outs = values[place], []
    for part in total.parts:
        found = one(eqn, [*values[:place], part, *values[place + 1 :]])
        if found is None:
            return None
        outs.append(found[0])
    if any(isinstance(out, Native) for out in outs):
        return [Total(tuple(outs), total.dtype, total.path)]
    return [functools.reduce(jnp.add, outs)]
