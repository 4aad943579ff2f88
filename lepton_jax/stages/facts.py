"""What the stages of a model are: their operations, variables, and what they pass on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jax.core.typing import Path
from lepton_jax.graph.cost import nbytes
from lepton_jax.stages.cuts import crossing_bytes
from lepton_jax.stages.program import Behind, Program, Var, variables_of, work


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What one stage is.

    Attributes:
      operations: how many operations, those on variables alone not counted.
      first, last: names of the first and the last.
      leaves: paths of the variables it needs, in the model's order; a tied one is in several stages.
      rows: of those of which it needs some rows of the first axis: path, from, up to; stacks of layers that are scanned over.
      parameters: their elements.
      macs: multiply-accumulates.
      bytes_in, bytes_out: that it takes from the stage before (or the inputs), and hands on.
      carried: shapes and dtypes of what it takes.
    """

    operations: int
    first: str
    last: str
    leaves: tuple[Path, ...]
    rows: tuple[tuple[Path, int, int], ...]
    parameters: int
    macs: int
    bytes_in: int
    bytes_out: int
    carried: tuple[tuple[tuple[int, ...], str], ...]

    @staticmethod
    def of_description(facts: Mapping[str, Any]) -> StageFacts:
        """Undo `dataclasses.asdict` and JSON."""
        carried = tuple((tuple(shape), dtype) for shape, dtype in facts["carried"])
        rows = tuple((str(path), int(low), int(high)) for path, low, high in facts["rows"])
        return StageFacts(**{**facts, "leaves": tuple(facts["leaves"]), "carried": carried, "rows": rows})


def facts_of(program: Program, cuts: Sequence[int]) -> tuple[StageFacts, ...]:
    """Return what the stages are that a program has between cuts.

    Args:
      program: the flat graph.
      cuts: before which of its operations.
    """
    size, crossing = len(program.operations), crossing_bytes(program)
    out_bytes = sum(nbytes(v.aval) for v in variables_of(program.outputs))
    found = []
    for begin, end in itertools.pairwise([0, *cuts, size]):
        operations, behind = program.operations[begin:end], program.behind(begin, end)
        taken = program.inputs if begin == 0 else program.carried(begin)
        found.append(
            StageFacts(
                operations=end - begin,
                first=program.traced.names[operations[0].path],
                last=program.traced.names[operations[-1].path],
                leaves=behind.leaves,
                rows=tuple((path, *rows) for path, rows in behind.rows.items()),
                parameters=sum(int(np.prod(shape)) for shape, _ in held(program, behind).values()),
                macs=sum(int(work(eqn)) for eqn in operations),
                bytes_in=sum(nbytes(v.aval) for v in taken),
                bytes_out=out_bytes if end == size else int(crossing[end]),
                carried=tuple((tuple(v.aval.shape), str(v.aval.dtype)) for v in taken),
            )
        )
    return tuple(found)


def held(program: Program, behind: Behind) -> dict[Path, tuple[tuple[int, ...], int]]:
    """The shape of what a stage holds of each variable, and its bytes."""
    found = {}
    for v, path in program.leaves.items():
        if path in behind.leaves:
            found[path] = _held(v, behind.rows.get(path))
    return found


def _held(v: Var, rows: tuple[int, int] | None) -> tuple[tuple[int, ...], int]:
    shape, size = tuple(v.aval.shape), nbytes(v.aval)
    if rows is None:
        return shape, size
    count = rows[1] - rows[0]
    return (count, *shape[1:]), size * count // shape[0]
