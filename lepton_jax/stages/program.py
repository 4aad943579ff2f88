"""A model's graph as one list of operations, calls inlined, and which values are needed where."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.cost import macs
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.trace import Apply, Equation, Traced, equations_of, trace, walk
from lepton_jax.stages.scans import Runs, Steps, run_of

Var = Any
"""A value of a jaxpr."""
Place = tuple[int, ...]
"""Where an operation stands, however scans are split."""
_SLICES = frozenset(("slice", "dynamic_slice", "gather"))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A flat graph: the operations that depend on inputs, in order, and how everything else follows from variables.

    Args:
      traced: the graph, without calls at its top.
      lengths: of the scans that can be split.
    """

    traced: Traced
    lengths: tuple[int, ...] = ()

    @cached_property
    def inputs(self) -> list[Var]:
        """The values of the inputs."""
        return list(self.traced.jaxpr.invars[len(self.traced.variables) :])

    @cached_property
    def leaves(self) -> dict[Var, Path]:
        """The values of the variables, and their paths."""
        return dict(zip(self.traced.jaxpr.invars, self.traced.variables))

    @cached_property
    def outputs(self) -> list[Any]:
        """The values of the outputs; a literal may be among them."""
        return list(self.traced.jaxpr.outvars)

    @cached_property
    def _needed(self) -> list[Equation]:
        equations = list(equations_of(self.traced.jaxpr))
        wanted, kept = {id(v) for v in self.outputs}, []
        for eqn in reversed(equations):
            if any(id(v) in wanted for v in eqn.outvars) or getattr(eqn.raw, "effects", None):
                wanted.update(id(v) for v in eqn.invars)
                kept.append(eqn)
        return kept[::-1]

    @cached_property
    def moving(self) -> set[Var]:
        """The values that depend on inputs."""
        found = set(self.inputs)
        for eqn in self._needed:
            if any(v in found for v in variables_of(eqn.invars)):
                found.update(eqn.outvars)
        return found

    @cached_property
    def operations(self) -> list[Equation]:
        """The operations that depend on inputs, in program order, without those whose results nobody needs."""
        return [eqn for eqn in self._needed if any(v in self.moving for v in eqn.outvars) or not eqn.outvars]

    @cached_property
    def resting(self) -> dict[Var, Equation]:
        """Values that depend on variables and constants alone, and the operation each comes from."""
        return {v: eqn for eqn in self._needed for v in eqn.outvars if v not in self.moving}

    @cached_property
    def born(self) -> dict[Var, int]:
        """After how many operations each moving value is there; an input after none."""
        there = dict.fromkeys(self.inputs, 0)
        there.update((v, place + 1) for place, eqn in enumerate(self.operations) for v in eqn.outvars)
        return there

    @cached_property
    def uses(self) -> dict[Var, list[int]]:
        """Which operations read each moving value; the outputs are read after all of them."""
        found: dict[Var, list[int]] = {}
        for place, eqn in enumerate(self.operations):
            for v in variables_of(eqn.invars):
                if v in self.moving:
                    found.setdefault(v, []).append(place)
        for v in variables_of(self.outputs):
            if v in self.moving:
                found.setdefault(v, []).append(len(self.operations))
        return found

    @cached_property
    def places(self) -> list[Place]:
        """Where each operation stands, however scans are split: ordered, and alike for what belongs to one run of steps."""
        found: list[Place] = []
        others = 0
        for eqn in self.operations:
            run = run_of(eqn.scope)
            found.append((others, *run) if run is not None else (others, len(self.lengths), 0))
            others += run is None
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Of the operations, whatever their shapes: a plan made of one program fits another only if they are equal."""
        # A slice of an axis of unknown length is traced to another operation.
        names = ("slice" if eqn.primitive in _SLICES else eqn.primitive for eqn in self.operations)
        text = ",".join(names)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def carried(self, cut: int) -> list[Var]:
        """The values that cross a cut before operation `cut`, in the order in which they came to be."""
        return [v for v, there in self.born.items() if there <= cut and self.uses.get(v, [-1])[-1] >= cut]

    def behind(self, begin: int, end: int) -> Behind:
        """What the operations from `begin` up to `end` need of the variables; with the last, the outputs, too."""
        read = [v for eqn in self.operations[begin:end] for v in variables_of(eqn.invars)]
        read += variables_of(self.outputs) if end == len(self.operations) else []
        seen: set[Var] = set()
        stack = [v for v in read if v not in self.moving]
        while stack:
            v = stack.pop()
            if v not in seen:
                seen.add(v)
                eqn = self.resting.get(v)
                stack.extend(u for u in variables_of(eqn.invars) if u not in self.moving) if eqn is not None else None
        needed = {id(self.resting[v].raw) for v in seen if v in self.resting}
        before = [eqn for eqn in self._needed if id(eqn.raw) in needed]
        whole = set(read) | {v for eqn in before if not _takes_rows(eqn) for v in variables_of(eqn.invars)}
        rows: dict[Path, tuple[int, int]] = {}
        for eqn in before:
            [v, *_] = [*variables_of(eqn.invars), None]
            if v in self.leaves and v not in whole:
                low, high = eqn.params["start_indices"][0], eqn.params["limit_indices"][0]
                old = rows.get(self.leaves[v], (low, high))
                rows[self.leaves[v]] = (min(low, old[0]), max(high, old[1]))
        return Behind(before, seen, tuple(path for v, path in self.leaves.items() if v in seen), rows)


@dataclasses.dataclass(frozen=True)
class Behind:
    """What some operations need of the variables.

    Attributes:
      operations: those on variables alone, in order.
      values: all values on the way.
      leaves: paths of the variables, in the model's order.
      rows: of those of which only some rows are needed, from which to which: layers that a run of a scan goes through.
    """

    operations: list[Equation]
    values: set[Var]
    leaves: tuple[Path, ...]
    rows: Mapping[Path, tuple[int, int]]


def _takes_rows(eqn: Equation) -> bool:
    return eqn.primitive == "slice" and run_of(eqn.scope) is not None


def flat_program(apply: Apply, variables: PyTree, inputs: Sequence[Any], steps: Steps | None = ()) -> Program:
    """Trace a function, with its calls inlined.

    Args:
      apply: a pure function ``apply(variables, *inputs)``.
      variables: its variables, or their shapes.
      inputs: its inputs, or their shapes.
      steps: where to split scans over weights; None: before every step.
    """
    return flattened(trace(apply, variables, *inputs), variables, inputs, steps)


def flattened(graph: Traced, variables: PyTree, inputs: Sequence[Any], steps: Steps | None) -> Program:
    """Inline the calls of a graph, and split its scans; see `flat_program`."""
    runs = Runs(graph, steps)

    def run(variables: PyTree, *inputs: Any) -> PyTree:
        runs.lengths.clear()
        return runs(variables, *inputs)

    run.__qualname__ = graph.name
    return Program(trace(run, variables, *inputs), tuple(runs.lengths))


def variables_of(atoms: Sequence[Any]) -> list[Var]:
    """The values among operands, literals left out."""
    return [v for v in atoms if not _compat.is_literal(v)]


def work(eqn: Equation) -> float:
    """Multiply-accumulates of an operation with all that is inside, and a little for each element it writes.

    The little is below one multiply-accumulate for all elements together: it decides between cuts that are otherwise alike.
    """
    inner = [one for body in eqn.bodies for one in walk(body.jaxpr, times=body.times)]
    count = sum(macs(one) * (1 if one.times is None else one.times) for one in inner) if inner else macs(eqn)
    written = sum(int(np.prod(v.aval.shape, dtype=np.int64)) for v in eqn.outvars)
    return count + written / (1 << 40)


class Evaluator(Interpreter):
    """Runs a part of a program.

    Args:
      program: the whole.
      behind: what the part needs of the variables.
    """

    def __init__(self, program: Program, behind: Behind):
        super().__init__(program.traced)
        self._rows = {v: behind.rows[path] for v, path in program.leaves.items() if path in behind.rows}

    def operate(self, equations: Sequence[Equation], env: dict[Var, Any]) -> None:
        """Run operations on the values of an environment, and put their results into it."""
        for eqn in equations:
            operands = [self.value(v, env) for v in eqn.invars]
            with _compat.context(eqn.raw):
                [first, *_] = [*variables_of(eqn.invars), None]
                held = self._rows.get(first)
                outs = self.default(eqn, operands) if held is None else [_rows(eqn, operands[0], held)]
            env.update(zip(eqn.outvars, outs))

    def value(self, atom: Any, env: Mapping[Var, Any]) -> Any:
        """The value of an operand."""
        return _compat.literal_value(atom) if _compat.is_literal(atom) else env[atom]


def _rows(eqn: Equation, leaf: Any, held: tuple[int, int]) -> Any:
    """Rows of a leaf of which the part holds those from one to another."""
    low, high = (eqn.params[name][0] - held[0] for name in ("start_indices", "limit_indices"))
    return jax.lax.slice_in_dim(leaf, low, high)


def run_part(program: Program, begin: int, end: int, part: Mapping[Path, Array], carried: Sequence[Any]) -> list[Any]:
    """Run the operations from `begin` up to `end`.

    Args:
      program: the whole.
      begin: the first of its operations.
      end: the one after the last; if that is the number of operations, the outputs are given.
      part: the variables that the operations need, by path.
      carried: the values of `program.carried(begin)`, or for the first part the inputs.

    Returns:
      the values of `program.carried(end)`, or the outputs.
    """
    is_last = end == len(program.operations)
    behind = program.behind(begin, end)
    missing = [path for path in behind.leaves if path not in part]
    if missing:
        raise ValueError(f"the stage needs the variables {', '.join(sorted(missing))}, which its part has not.")
    env: dict[Var, Any] = dict(zip(program.traced.jaxpr.constvars, program.traced.consts))
    env.update((v, part[path]) for v, path in program.leaves.items() if path in behind.leaves)
    env.update(zip(program.inputs if begin == 0 else program.carried(begin), carried))
    evaluator = Evaluator(program, behind)
    evaluator.operate([*behind.operations, *program.operations[begin:end]], env)
    return [evaluator.value(v, env) for v in (program.outputs if is_last else program.carried(end))]


def shapes_of(values: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of values of a jaxpr."""
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in values]
