"""A plan that splits a model into stages, and the stages as functions and variables of their own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import check_whole
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.cost import nbytes
from lepton_jax.graph.trace import Apply, Equation
from lepton_jax.stages.cuts import crossing_bytes, find_cuts, penalties_of
from lepton_jax.stages.picture import draw
from lepton_jax.stages.program import Program, flat_program, shapes_of, variables_of, work
from lepton_jax.stages.structure import Structure
from lepton_jax.stages.unit import Unit, Units

_VERSION = 1
Balance = Literal["macs", "bytes"] | Callable[[Equation], float]
Part = dict[Path, Array]
"""The variables of a stage, by the paths that they have in the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What one stage is.

    Attributes:
      operations: how many operations, those on variables alone not counted.
      first, last: names of the first and the last.
      leaves: paths of the variables it needs, in the model's order; a tied one is in several stages.
      parameters: their elements.
      macs: multiply-accumulates.
      bytes_in, bytes_out: that it takes from the stage before (or the inputs), and hands on.
      carried: shapes and dtypes of what it takes.
    """

    operations: int
    first: str
    last: str
    leaves: tuple[Path, ...]
    parameters: int
    macs: int
    bytes_in: int
    bytes_out: int
    carried: tuple[tuple[tuple[int, ...], str], ...]


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is split into stages; ``print(plan)`` shows them, `to_json` keeps them.

    A plan is of one model at one shape of its inputs; its stages take any other number of examples, too.

    Attributes:
      cuts: before which operations of the flat graph, in program order.
      stages_of: what each stage is.
      unread: paths of variables that no stage needs.
      fingerprint: of the operations; stages of a function with others are refused.
      structure: of the variables and inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"])
      >>> variables, x = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 4))}, jnp.ones((2, 4))
      >>> split = plan(net, variables, x, count=2)
      >>> [facts.leaves for facts in split.stages_of], Plan.from_json(split.to_json()) == split
      ([('a',), ('b',)], True)
      >>> first, second = split.stages(net)
      >>> parts = split.split(variables)
      >>> bool((second(parts[1], *first(parts[0], x)) == net(variables, x)).all())
      True
    """

    cuts: tuple[int, ...]
    stages_of: tuple[StageFacts, ...]
    unread: tuple[Path, ...]
    fingerprint: str
    structure: Structure

    def __len__(self) -> int:
        return len(self.stages_of)

    def split(self, variables: PyTree) -> tuple[Part, ...]:
        """Return the variables of each stage; leaves are not copied.

        Args:
          variables: of the model, or any tree of the same paths, such as its gradients.

        Raises:
          ValueError: if leaves are missing, or have other shapes.
        """
        leaves = self.structure.leaves_of(variables)
        return tuple({path: leaves[path] for path in facts.leaves} for facts in self.stages_of)

    def merge(
        self, parts: Sequence[Mapping[Path, Array]], variables: PyTree, *, tied: Literal["first", "sum"] = "first"
    ) -> PyTree:
        """Undo `split`.

        Args:
          parts: of every stage.
          variables: the model's; leaves that no stage needs come from here.
          tied: of a leaf that several stages have, the first is taken; or for gradients their sum.

        Raises:
          ValueError: for another number of parts.
        """
        if len(parts) != len(self):
            raise ValueError(f"merge: {len(self)} parts are needed, one a stage; got {len(parts)}.")
        leaves: dict[Path, Array] = {}
        for part in parts:
            for path, leaf in part.items():
                leaves[path] = leaf if path not in leaves else leaves[path] + leaf if tied == "sum" else leaves[path]
        return paths.replace(variables, leaves)

    def stages(self, apply: Apply) -> tuple[Unit, ...]:
        """Return the stages as pure functions: ``stage(part, *carried) -> carried``.

        The first takes the model's inputs, the last returns what `apply` returns; what goes from one to the next is a tuple of
        arrays. Call them under jit.

        Args:
          apply: the function that was planned.

        Raises:
          ValueError: when called, if the function has other operations than that of the plan, or for other shapes.
        """
        units = Units(self, apply)
        return tuple(Unit(units, place) for place in range(len(self)))

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw the stages: their shares of work and parameters, and the bytes between them.

        Args:
          path: of a picture, .png, .svg or .pdf.
        """
        draw(self, path)

    def to_json(self) -> str:
        """Return the plan as JSON."""
        fields = {"version": _VERSION, "cuts": self.cuts, "unread": self.unread, "fingerprint": self.fingerprint}
        stages = [dataclasses.asdict(facts) for facts in self.stages_of]
        return json.dumps({**fields, "stages": stages, "structure": self.structure.described()}, indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Undo `to_json`. Trees of dicts, lists and tuples are as before; of others `split` and the first stage learn the form.

        Raises:
          ValueError: for what is no plan.
        """
        try:
            read = json.loads(text)
            if read["version"] != _VERSION:
                raise ValueError(f"version {read['version']}")
            stages = tuple(StageFacts(**_tuples(facts)) for facts in read["stages"])
            return Plan(
                cuts=tuple(read["cuts"]),
                stages_of=stages,
                unread=tuple(read["unread"]),
                fingerprint=read["fingerprint"],
                structure=Structure.of_description(read["structure"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Plan.from_json: this is no plan of stages ({error}); make one by plan.to_json().") from error

    def __str__(self) -> str:
        head = ("stage", "operations", "from", "to", "variables", "parameters", "MACs", "share", "bytes in", "bytes out")
        total = max(sum(facts.macs for facts in self.stages_of), 1)
        rows = [
            (
                number,
                facts.operations,
                facts.first,
                facts.last,
                len(facts.leaves),
                f"{facts.parameters:,}",
                f"{facts.macs:,}",
                f"{100 * facts.macs / total:.1f} %",
                f"{facts.bytes_in:,}",
                f"{facts.bytes_out:,}",
            )
            for number, facts in enumerate(self.stages_of)
        ]
        lines = [table([head, *rows], left=(0, 2, 3))]
        return "\n".join([*lines, *([f"not read: {', '.join(self.unread)}"] if self.unread else [])])


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    carried = tuple((tuple(shape), dtype) for shape, dtype in facts["carried"])
    return {**facts, "leaves": tuple(facts["leaves"]), "carried": carried}


@checked_but("balance")
def plan(apply: Apply, variables: PyTree, *inputs: Any, count: int, balance: Balance = "macs") -> Plan:
    """Split a model's graph into stages that are as dear as one another, where few bytes go from one to the next.

    The graph is cut where it is flat: calls are inlined; a scan, a loop, a branch or a function with its own derivative rule
    stays whole. What is computed from variables alone belongs to the stage that needs it. Among all cuts whose dearest stage
    costs at most 1.15 times that of the best ones, those are taken over which the fewest bytes go, and, before that, no value
    on its way from a product into a sum, which compilers round as one: so that stages give the bits of the whole.

    Args:
      apply: a pure function ``apply(variables, *inputs)``; nothing in it needs to say where it may be cut.
      variables: its variables, or their shapes; of packed leaves (for a function that takes them, as `native.packed` makes one)
        the arrays that they hold are the variables.
      *inputs: arrays or their shapes, of the usual number of examples.
      count: how many stages, from 1.
      balance: what a stage costs: "macs", its multiply-accumulates; "bytes", those of its variables; or a function of an
        operation, such as one that looks up measured times.

    Raises:
      ValueError: for more stages than there are operations on the inputs.
      TypeError: for another balance, or a function that cannot be traced.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"])
      >>> made = plan(net, {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 4))}, jnp.ones((2, 4)), count=2)
      >>> [(facts.first, facts.last, facts.macs, facts.bytes_out) for facts in made.stages_of]
      [('dot_general', 'tanh', 64, 64), ('dot_general_1', 'tanh_1', 64, 32)]

    Source: the balance of contiguous stages as in Huang et al. 2019, "GPipe", and Narayanan et al. 2019, "PipeDream"; here on a
    graph's operations, exact, with bytes.
    """
    check_whole("plan: count", count, 1)
    if balance not in ("macs", "bytes") and not callable(balance):
        raise TypeError(f'plan: balance must be "macs", "bytes", or a function of an operation; got {balance!r}.')
    program = flat_program(apply, variables, inputs)
    size = len(program.operations)
    if count > size:
        raise ValueError(f"plan: count={count} is more than the {size} operations between which there can be cuts.")
    cuts = find_cuts(_costs(program, balance), penalties_of(program), count)
    ends = [0, *cuts, size]
    crossing = crossing_bytes(program)
    out_bytes = _bytes(shapes_of(variables_of(program.outputs)))
    stages = []
    for begin, end in itertools.pairwise(ends):
        needed = _leaves(program, begin, end)
        operations = program.operations[begin:end]
        stages.append(
            StageFacts(
                operations=end - begin,
                first=program.traced.names[operations[0].path],
                last=program.traced.names[operations[-1].path],
                leaves=needed,
                parameters=sum(int(np.prod(v.aval.shape)) for v, path in program.leaves.items() if path in needed),
                macs=sum(int(work(eqn)) for eqn in operations),
                bytes_in=_bytes(shapes_of(program.inputs)) if begin == 0 else int(crossing[begin]),
                bytes_out=out_bytes if end == size else int(crossing[end]),
                carried=_facts(shapes_of(program.inputs if begin == 0 else program.carried(begin))),
            )
        )
    used = {path for facts in stages for path in facts.leaves}
    return Plan(
        cuts=cuts,
        stages_of=tuple(stages),
        unread=tuple(path for path in program.traced.variables if path not in used),
        fingerprint=program.fingerprint,
        structure=Structure.of_trees(variables, tuple(inputs)),
    )


def _costs(program: Program, balance: Balance) -> list[float]:
    if balance == "macs":
        return [work(eqn) for eqn in program.operations]
    if callable(balance):
        costs = [float(balance(eqn)) for eqn in program.operations]
        if not (np.isfinite(costs).all() and min(costs) >= 0):
            raise ValueError("plan: balance must give costs of 0 or more, finite, for every operation.")
        return costs
    costs, met = [], set[Path]()
    size = {path: _bytes(shapes_of([v])) for v, path in program.leaves.items()}
    for place, eqn in enumerate(program.operations):
        new = set(_leaves(program, place, place + 1)) - met
        met |= new
        costs.append(sum(size[path] for path in new) + work(eqn) / (1 << 62))
    return costs


def _leaves(program: Program, begin: int, end: int) -> tuple[Path, ...]:
    """The variables that operations need, in the model's order."""
    read = [v for eqn in program.operations[begin:end] for v in variables_of(eqn.invars)]
    read += variables_of(program.outputs) if end == len(program.operations) else []
    seen = program.behind(read)[1]
    return tuple(path for v, path in program.leaves.items() if v in seen)


def _facts(shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((tuple(shape.shape), str(shape.dtype)) for shape in shapes)


def _bytes(shapes: Sequence[jax.ShapeDtypeStruct]) -> int:
    return sum(map(nbytes, shapes))
