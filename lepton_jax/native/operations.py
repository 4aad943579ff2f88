"""An operation of a graph on the native forms of its operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation
from lepton_jax.leaves.form import Native, Operation

_PRODUCTS = ("dot_general", "conv_general_dilated")


def run(eqn: Equation, values: Sequence[Any]) -> list[Any] | None:
    """Run an operation on native forms; None if none of them has a way to.

    Args:
      eqn: any operation.
      values: its operands.
    """

    def bind(values: Sequence[Any]) -> Any:
        return _compat.bind(eqn.raw, values)[0]

    def one(values: Sequence[Any]) -> Any:
        if eqn.primitive in _PRODUCTS:
            values = [value.opened() if isinstance(value, Native) else value for value in values]
        forms = [value for value in values if isinstance(value, Native)]
        if not forms:
            return bind(values)
        out = next((out for form in forms if (out := form.run(operation, values)) is not None), None)
        return out.astype(eqn.out_avals[0].dtype) if isinstance(out, jax.Array) else out

    shape = eqn.out_avals[0].shape if eqn.out_avals else ()
    operation = Operation(primitive=eqn.primitive, params=eqn.params, shape=shape, bind=bind, run=one)
    out = one(values)
    return None if out is None else [out]
