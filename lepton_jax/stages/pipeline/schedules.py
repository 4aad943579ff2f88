"""In which order the stages of a pipeline take their microbatches, forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole

Task = tuple[Literal["forward", "backward"], int]
"""What a stage does next, and with which microbatch."""


@checked
@dataclass(frozen=True)
class GPipe:
    """All microbatches forwards, then all backwards; a stage keeps the inputs of all of them.

    Args:
      microbatches: into how many a batch is split.

    Example:
      >>> GPipe(2).tasks(0, 2)
      [('forward', 0), ('forward', 1), ('backward', 0), ('backward', 1)]

    Source: Y. Huang et al., "GPipe", 2019, with their rematerialisation: a stage keeps its inputs and computes the rest again.
    Deviation: the backward passes take the microbatches in the order of the forward ones, in which gradients are summed.
    """

    microbatches: int

    def __post_init__(self) -> None:
        check_whole("GPipe: microbatches", self.microbatches, 1)

    def tasks(self, stage: int, stages: int) -> list[Task]:
        """Return what a stage does, in order."""
        numbers = range(self.microbatches)
        return [*(("forward", number) for number in numbers), *(("backward", number) for number in numbers)]


@checked
@dataclass(frozen=True)
class OneFOneB:
    """One forwards, one backwards: stage s of K keeps the inputs of at most K - s microbatches.

    Args:
      microbatches: into how many a batch is split.

    Example:
      >>> OneFOneB(3).tasks(0, 2)
      [('forward', 0), ('forward', 1), ('backward', 0), ('forward', 2), ('backward', 1), ('backward', 2)]
      >>> OneFOneB(2).tasks(1, 2)
      [('forward', 0), ('backward', 0), ('forward', 1), ('backward', 1)]

    Source: D. Narayanan et al., "Memory-efficient pipeline-parallel DNN training", 2021, with a flush after every batch, so
    that gradients are those of the weights at its beginning.
    """

    microbatches: int

    def __post_init__(self) -> None:
        check_whole("OneFOneB: microbatches", self.microbatches, 1)

    def tasks(self, stage: int, stages: int) -> list[Task]:
        """Return what a stage does, in order."""
        ahead = min(stages - stage, self.microbatches)
        order: list[Task] = [("forward", number) for number in range(ahead)]
        for number in range(self.microbatches):
            order.append(("backward", number))
            if ahead + number < self.microbatches:
                order.append(("forward", ahead + number))
        return order


Schedule = GPipe | OneFOneB


def in_turn(schedule: Schedule, stages: int) -> list[tuple[str, int, int]]:
    """Return all tasks as (what, stage, microbatch), each after those that it needs; stages take turns.

    Example:
      >>> in_turn(GPipe(1), 2)
      [('forward', 0, 0), ('forward', 1, 0), ('backward', 1, 0), ('backward', 0, 0)]
    """
    waiting = [schedule.tasks(stage, stages)[::-1] for stage in range(stages)]
    done: set[tuple[str, int, int]] = set()
    order: list[tuple[str, int, int]] = []
    while any(waiting):
        ready = [
            (what, stage, number)
            for stage, tasks in enumerate(waiting)
            for what, number in tasks[-1:]
            if _needs(what, stage, number, stages) <= done
        ]
        if not ready:
            raise ValueError(f"{schedule} is no schedule: every stage waits for another.")
        for one in ready:
            waiting[one[1]].pop()
            done.add(one)
            order.append(one)
    return order


@checked
def kept_bytes(schedule: Schedule, sizes: Sequence[int]) -> int:
    """Return the most bytes of stage inputs that are kept at once, over all stages.

    Args:
      schedule: the order of work.
      sizes: bytes that each stage takes for one microbatch.

    Example:
      >>> kept_bytes(GPipe(8), [100, 50]), kept_bytes(OneFOneB(8), [100, 50])
      (1200, 250)
    """
    now = most = 0
    for what, stage, _ in in_turn(schedule, len(sizes)):
        now += sizes[stage] if what == "forward" else -sizes[stage]
        most = max(most, now)
    return most


def _needs(what: str, stage: int, number: int, stages: int) -> set[tuple[str, int, int]]:
    if what == "forward":
        return {("forward", stage - 1, number)} if stage else set()
    return {("forward", stage, number)} | ({("backward", stage + 1, number)} if stage + 1 < stages else set())
