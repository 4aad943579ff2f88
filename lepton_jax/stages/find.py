"""Finding a plan: what each place of a graph costs, and where it is cut."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import check_whole
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph.trace import Apply, Equation, trace
from lepton_jax.stages.cuts import find_cuts, penalties_of
from lepton_jax.stages.facts import facts_of, held
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.program import Place, Program, flattened, work
from lepton_jax.stages.scans import Steps
from lepton_jax.stages.seconds import stage_seconds
from lepton_jax.stages.structure import Structure

_PIECES = 24
"""Into how many pieces a model is taken to be timed."""
Balance = Literal["macs", "bytes", "measured"] | Callable[[Equation], float]


@checked_but("balance")
def plan(apply: Apply, variables: PyTree, *inputs: Any, count: int, balance: Balance = "macs") -> Plan:
    """Split a model's graph into stages that are as dear as one another, where few bytes go from one to the next.

    The graph is cut where it is flat: calls are inlined; a scan over stacked weights may be cut between its steps; another
    loop, a branch or a function with its own derivative rule stays whole. What is computed from variables alone belongs to the
    stage that needs it. Among all cuts whose dearest stage costs at most 1.15 times that of the best ones, those are taken over
    which the fewest bytes go, and, before that, no value on its way from a product into a sum, which compilers round as one: so
    that stages give the bits of the whole. Where no cut is free of that (computing in bfloat16, a stage that is a single step
    of a scan), last bits may differ: `verify` says whether and where.

    Args:
      apply: a pure function ``apply(variables, *inputs)``; nothing in it needs to say where it may be cut.
      variables: its variables, or their shapes; of packed leaves (for a function that takes them, as `native.packed` makes one)
        the arrays that they hold are the variables.
      *inputs: arrays or their shapes, of the usual number of examples.
      count: how many stages, from 1.
      balance: what a stage costs: "macs", its multiply-accumulates; "bytes", those of its variables; "measured", its time on
        this machine, taken in pieces that are compiled and timed one by one; or a function of an operation.

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
    if balance not in ("macs", "bytes", "measured") and not callable(balance):
        raise TypeError(f'plan: balance must be "macs", "bytes", "measured", or a function of an operation; got {balance!r}.')
    graph = trace(apply, variables, *inputs)
    fine = flattened(graph, variables, inputs, None)
    places = sorted(set(fine.places))
    if count > len(places):
        raise ValueError(f"plan: count={count} is more than the {len(places)} operations between which there can be cuts.")
    number = {place: n for n, place in enumerate(places)}
    group = np.array([number[place] for place in fine.places])
    penalties = penalties_of(fine)[np.searchsorted(group, np.arange(len(places) + 1))]

    def cut(costs: Sequence[float], count: int) -> list[Place]:
        return [places[one] for one in find_cuts(np.bincount(group, costs).tolist(), penalties, count)]

    if balance == "measured":
        rough = cut(_costs(fine, "macs"), min(_PIECES, len(places)))
        pieces = planned(graph, variables, inputs, fine, rough)
        costs = _measured(fine, rough, stage_seconds(pieces, apply, variables, *inputs))
    else:
        costs = _costs(fine, balance)
    return planned(graph, variables, inputs, fine, cut(costs, count))


def planned(graph: Any, variables: PyTree, inputs: Sequence[Any], fine: Program, chosen: Sequence[Place]) -> Plan:
    """Return the plan that has cuts before given places of a graph.

    Args:
      graph: the function's.
      variables: as it was traced with.
      inputs: likewise.
      fine: the flat graph, with scans split before every step.
      chosen: the places, see `Program.places`.
    """
    steps = steps_of(fine, chosen)
    program = flattened(graph, variables, inputs, steps) if fine.lengths else fine
    cuts = tuple(next(n for n, there in enumerate(program.places) if there >= place) for place in chosen)
    facts = facts_of(program, cuts)
    used = {path for one in facts for path in one.leaves}
    return Plan(
        cuts=cuts,
        steps=steps,
        stages_of=facts,
        unread=tuple(path for path in program.traced.variables if path not in used),
        fingerprint=program.fingerprint,
        structure=Structure.of_trees(variables, tuple(inputs)),
    )


def steps_of(fine: Program, chosen: Sequence[Place]) -> Steps:
    """The steps before which each scan is cut, by the places of the cuts."""
    inside: list[list[int]] = [[] for _ in fine.lengths]
    for _, scan, step in chosen:
        if scan < len(inside) and 0 < step < fine.lengths[scan]:
            inside[scan].append(step)
    return tuple(tuple(one) for one in inside)


def _costs(program: Program, balance: Balance) -> list[float]:
    if balance == "macs":
        return [work(eqn) for eqn in program.operations]
    if callable(balance):
        costs = [float(balance(eqn)) for eqn in program.operations]
        if not (np.isfinite(costs).all() and min(costs) >= 0):
            raise ValueError("plan: balance must give costs of 0 or more, finite, for every operation.")
        return costs
    return _bytes(program)


def _measured(program: Program, cuts: Sequence[Place], seconds: Sequence[float]) -> list[float]:
    """Seconds of each operation: those of its piece, by the shares of their work."""
    works = np.array([work(eqn) for eqn in program.operations])
    piece = np.array([bisect.bisect_right(cuts, place) for place in program.places])
    shares = works / np.maximum(np.bincount(piece, works, len(seconds)), 1e-30)[piece]
    return list(np.asarray(seconds)[piece] * shares)


def _bytes(program: Program) -> list[float]:
    """Bytes of the variables that an operation is the first to need; of equal ones, those that work less are less."""
    costs, met = [], set[tuple[Path, Any]]()
    for place, eqn in enumerate(program.operations):
        behind = program.behind(place, place + 1)
        size = {(path, behind.rows.get(path)): n for path, (_, n) in held(program, behind).items()}
        costs.append(sum(n for key, n in size.items() if key not in met) + work(eqn) / (1 << 62))
        met |= size.keys()
    return costs
