"""A plan that splits a model into stages: its variables into parts, its function into units."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Literal

import jax

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.tables import table
from lepton_jax.core.typing import Array, Path, PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.stages.facts import StageFacts
from lepton_jax.stages.part import Part
from lepton_jax.stages.picture import draw
from lepton_jax.stages.rows import merged, rows_of
from lepton_jax.stages.scans import Steps
from lepton_jax.stages.structure import Structure
from lepton_jax.stages.unit import Unit, Units

_VERSION = 2


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is split into stages; ``print(plan)`` shows them, `to_json` keeps them.

    A plan is of one model at one shape of its inputs; its stages take any other number of examples, too.

    Attributes:
      cuts: before which operations of the flat graph, in program order.
      steps: for each scan over weights that can be split, before which of its steps it is; such a scan is several operations.
      stages_of: what each stage is.
      unread: paths of variables that no stage needs.
      fingerprint: of the operations; stages of a function with others are refused.
      structure: of the variables and inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> net = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"])
      >>> variables, x = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 4))}, jnp.ones((2, 4))
      >>> from lepton_jax import stages
      >>> split = stages.plan(net, variables, x, count=2)
      >>> [facts.leaves for facts in split.stages_of], Plan.from_json(split.to_json()) == split
      ([('a',), ('b',)], True)
      >>> first, second = split.stages(net)
      >>> parts = split.split(variables)
      >>> bool((second(parts[1], *first(parts[0], x)) == net(variables, x)).all())
      True
    """

    cuts: tuple[int, ...]
    steps: Steps
    stages_of: tuple[StageFacts, ...]
    unread: tuple[Path, ...]
    fingerprint: str
    structure: Structure

    def __len__(self) -> int:
        return len(self.stages_of)

    def split(self, variables: PyTree) -> tuple[Part, ...]:
        """Return the variables of each stage, by path. Leaves are not copied; of a stack of layers a stage has its own rows.

        Args:
          variables: of the model, or any tree of the same paths, such as its gradients.

        Raises:
          ValueError: if leaves are missing, or have other shapes.
        """
        leaves, tree = self.structure.leaves_of(variables), jax.tree.structure(variables)
        return tuple(Part(rows_of(leaves, facts), tree) for facts in self.stages_of)

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
        return paths.replace(variables, merged(self.stages_of, parts, tied == "sum"))

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
        fields = {
            "version": _VERSION,
            "cuts": self.cuts,
            "steps": self.steps,
            "unread": self.unread,
            "fingerprint": self.fingerprint,
        }
        stages = [dataclasses.asdict(facts) for facts in self.stages_of]
        return json.dumps({**fields, "stages": stages, "structure": self.structure.described()}, indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Undo `to_json`.

        Trees of dicts, lists and tuples are as before. The form of others is taken from what is given: that of variables by the
        parts of `split`, that of inputs by the first of the `stages`.

        Raises:
          ValueError: for what is no plan.
        """
        try:
            read = json.loads(text)
            if read["version"] != _VERSION:
                raise ValueError(f"version {read['version']}")
            return Plan(
                cuts=tuple(read["cuts"]),
                steps=tuple(tuple(one) for one in read["steps"]),
                stages_of=tuple(StageFacts.of_description(facts) for facts in read["stages"]),
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
