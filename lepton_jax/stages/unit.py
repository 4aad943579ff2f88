"""One stage of a split model as a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.program import Program, flat_program, run_part, shapes_of

if TYPE_CHECKING:
    from lepton_jax.stages.plan import Plan


class Units:
    """What the stages of a model share: the function, and its graphs at the shapes that were met.

    Args:
      plan: how it is split.
      apply: the function.
    """

    def __init__(self, plan: Plan, apply: Apply):
        self.plan, self.apply = plan, apply
        self._programs: dict[Any, Program] = {}
        self._inputs_tree: Any = plan.structure.inputs_tree

    def inputs_tree(self, inputs: Sequence[Any]) -> Any:
        """Return the structure of the inputs as planned; a plan from JSON may not have it, and it is that of these."""
        if self._inputs_tree is None:
            self._inputs_tree = jax.tree.structure(tuple(inputs))
        return self._inputs_tree

    def program(self, part: Mapping[Path, Any], inputs: Sequence[Any] | None) -> Program:
        """Return the graph at the shapes of these flat inputs, or at those of the plan.

        Args:
          part: the variables of a stage, which may know of which tree they are.
          inputs: shapes, or None.

        Raises:
          ValueError: if it has other operations than the plan's.
        """
        structure = self.plan.structure
        tree = structure.variables_tree if structure.variables_tree is not None else getattr(part, "tree", None)
        shaped = structure.input_shapes(self._inputs_tree, inputs)
        leaves = jax.tree.leaves(shaped)
        key = (tree, self._inputs_tree, str(leaves))
        # A length that is a symbol belongs to the trace that it is met in.
        if key not in self._programs or not all(isinstance(n, int) for leaf in leaves for n in leaf.shape):
            self._programs[key] = program_at(self.plan, self.apply, structure.variable_shapes(tree), shaped)
        return self._programs[key]


def program_at(plan: Plan, apply: Apply, variables: PyTree, inputs: Sequence[Any]) -> Program:
    """Return the flat graph of the function of a plan.

    Args:
      plan: of the function.
      apply: the function.
      variables: its variables, or their shapes.
      inputs: its inputs, or their shapes; not necessarily those of the plan.

    Raises:
      ValueError: if it has other operations than the plan's.
    """
    made = flat_program(apply, variables, inputs, plan.steps)
    if made.fingerprint != plan.fingerprint:
        raise ValueError(
            f"this function has other operations ({len(made.operations)}) than the one that was planned; plan it anew, "
            "with inputs of these shapes."
        )
    return made


class Unit:
    """A stage: ``unit(part, *carried) -> carried``; see `Plan.stages`.

    Args:
      units: what all stages share.
      place: which one it is.
    """

    def __init__(self, units: Units, place: int):
        self._units, self.place = units, place
        self.__name__ = f"stage_{place}"

    def __repr__(self) -> str:
        facts = self._units.plan.stages_of[self.place]
        return f"Unit({self.place}: {facts.operations} operations, {facts.first} to {facts.last})"

    def __call__(self, part: Mapping[Path, Array], *carried: Any) -> Any:
        plan, is_last = self._units.plan, self.place == len(self._units.plan) - 1
        cuts = plan.cuts
        if self.place == 0:
            flat, tree = jax.tree.flatten(carried)
            if tree != self._units.inputs_tree(carried):
                raise ValueError(f"{self.__name__} takes the inputs {self._units.inputs_tree(carried)}; got {tree}.")
            program = self._units.program(part, [_shape(leaf) for leaf in flat])
        else:
            flat, program = list(carried), self._later(part, carried)
        begin = 0 if self.place == 0 else cuts[self.place - 1]
        end = len(program.operations) if is_last else cuts[self.place]
        outs = run_part(program, begin, end, part, flat)
        return jax.tree.unflatten(program.traced.out_tree, outs) if is_last else tuple(outs)

    def _later(self, part: Mapping[Path, Any], carried: Sequence[Any]) -> Program:
        """The graph in which these values are carried here: that of the plan, or one of another number of examples."""
        plan = self._units.plan
        planned = plan.stages_of[self.place].carried
        given = [(tuple(jnp.shape(value)), str(jnp.result_type(value))) for value in carried]
        if len(given) != len(planned):
            raise ValueError(
                f"{self.__name__} takes {len(planned)} values; got {len(given)}. Pass on all that a stage returns."
            )
        program = self._units.program(part, _inputs_of(plan, planned, given))
        wanted = [(tuple(s.shape), str(s.dtype)) for s in shapes_of(program.carried(plan.cuts[self.place - 1]))]
        if wanted != given:
            wrong = [
                f"value {n}: {g[1]}{list(g[0])}, not {w[1]}{list(w[0])}"
                for n, (g, w) in enumerate(zip(given, wanted))
                if g != w
            ]
            raise ValueError(f"{self.__name__} takes what the stage before returns; got {'; '.join(wrong)}.")
        return program


def _inputs_of(plan: Plan, planned: Sequence[Any], given: Sequence[Any]) -> list[jax.ShapeDtypeStruct] | None:
    """Shapes of the model's inputs from those of carried values, where the number of examples is another; None as planned."""
    shapes = plan.structure.flat_inputs()
    lengths = {shape.shape[0] for shape in shapes if shape.shape}
    others = [(old[0][0], new[0][0]) for old, new in zip(planned, given) if old[0] and new[0] and old[0][0] != new[0][0]]
    if not others or not lengths:
        return None
    examples = max(lengths)
    old, new = others[0]
    number = new if old == examples else new * examples // old
    return [
        jax.ShapeDtypeStruct((number, *shape.shape[1:]), shape.dtype) if shape.shape[:1] == (examples,) else shape
        for shape in shapes
    ]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
