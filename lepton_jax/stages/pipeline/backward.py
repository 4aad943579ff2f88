"""One stage of a pipeline, forwards and backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.typing import Array, Path
from lepton_jax.stages.program import Program, Var, run_part, variables_of

Leaves = dict[Path, Array]


class Stage:
    """What a pipeline does with one stage, compiled.

    A stage keeps what it took, and computes the rest again on its way back. Derivatives go to its variables and to those
    carried values that depend on variables. The gradient of a variable that a later stage has as well comes in with the
    cotangents, and what this stage adds goes on top: a tied variable's gradient is summed in the whole model's order.

    Args:
      program: the graph of the loss.
      begin: the first of the stage's operations.
      end: the one after its last.
      later: paths of whole variables that later stages have, too.
      earlier: likewise of earlier stages; their gradients are handed to them.
    """

    def __init__(self, program: Program, begin: int, end: int, later: Sequence[Path], earlier: Sequence[Path]):
        self._program, self._begin, self._end = program, begin, end
        self.later, self.earlier = tuple(later), tuple(earlier)
        self.is_last = end == len(program.operations)
        steered = steered_by_variables(program)
        taken = program.inputs if begin == 0 else program.carried(begin)
        given = [] if self.is_last else program.carried(end)
        self._moved = [n for n, v in enumerate(taken) if begin and v in steered]
        self._sends = [n for n, v in enumerate(given) if v in steered]
        self.out_tree = program.traced.out_tree
        self.forward = jax.jit(self._forward)
        self.backward = jax.jit(self._backward)

    def _forward(self, part: Mapping[Path, Array], carried: Sequence[Any]) -> list[Any]:
        return run_part(self._program, self._begin, self._end, part, carried)

    def _backward(
        self, part: Leaves, carried: Sequence[Any], cotangents: Sequence[Array], tied: Leaves
    ) -> tuple[Leaves, list[Array], list[Any]]:
        """Return gradients of the variables, cotangents for the stage before, and for the last stage the outputs."""
        moving = {path: leaf for path, leaf in part.items() if paths.is_floating(leaf)}

        def run(own: Leaves, given: Sequence[Array]) -> Any:
            values = list(carried)
            for place, value in zip(self._moved, given):
                values[place] = value
            outs = self._forward({**part, **own}, values)
            sent = outs[:1] if self.is_last else [outs[place] for place in self._sends]
            return (sent, {path: own[path] for path in tied}), outs if self.is_last else []

        _, pull, outs = jax.vjp(run, moving, [carried[place] for place in self._moved], has_aux=True)
        ends = [jnp.ones((), outs[0].dtype)] if self.is_last else list(cotangents)
        grads, back = pull((ends, tied))
        return grads, back, outs


def steered_by_variables(program: Program) -> set[Var]:
    """The floating values of a program that depend on inputs and on variables."""
    found: set[Var] = set()
    for eqn in program.operations:
        if any(v in found or v not in program.moving for v in variables_of(eqn.invars)):
            found.update(eqn.outvars)
    return {v for v in found if jnp.issubdtype(v.aval.dtype, jnp.floating)}
