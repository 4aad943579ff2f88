"""Which channels the inputs of a derivative rule have lost: the rule is traced apart from the graph that calls it."""

from collections.abc import Sequence

import numpy as np

from lepton_jax.graph import _compat
from lepton_jax.graph.trace import Equation
from lepton_jax.pruning.channels.groups import Keeps, atoms_of

RULES = ("jvp", "fwd", "bwd")
"""The rule of a `custom_jvp`; the forward and the backward rule of a `custom_vjp`."""

Shape = tuple[int, ...]


def rule_labels(
    rule: str,
    eqn: Equation,
    shapes: Sequence[tuple[Shape, Shape]],
    ins: Sequence[Keeps],
    outs: Sequence[Keeps],
    saved: Sequence[Keeps],
) -> list[tuple[np.ndarray, ...]]:
    """Label the inputs of a derivative rule: an atom for every removed index, 0 for all others.

    The rule of a `custom_jvp` takes the arguments, then the tangents of some of them, in order; a forward rule takes the
    arguments; a backward rule takes what the forward rule saved (results of its, or arguments), then the cotangents.

    Args:
      rule: one of `RULES`.
      eqn: the call.
      shapes: of every input of the rule, as traced and as it is now.
      ins: what stays of the operands of the call.
      outs: what stays of its results.
      saved: what stays of the results of the forward rule.

    Raises:
      ValueError: if an input could have come to its shape in several ways.
    """
    arguments = list(ins[eqn.params["num_consts"] :])
    if rule == "bwd":
        new = iter(saved)
        known = [next(new) if source is None else ins[source] for source in _compat.saved_sources(eqn.raw)] + list(outs)
    else:
        known = arguments + _in_order(arguments, shapes[len(arguments) :], eqn)
    return atoms_of(known)


def _fits(keeps: Keeps, shape: tuple[Shape, Shape]) -> bool:
    return (tuple(map(len, keeps)), tuple(int(keep.sum()) for keep in keeps)) == shape


def _in_order(arguments: Sequence[Keeps], shapes: Sequence[tuple[Shape, Shape]], eqn: Equation) -> list[Keeps]:
    """The arguments that the given tangents belong to; all of them, or those whose shapes fit, in order."""
    if len(shapes) == len(arguments):
        return list(arguments)
    found, start = [], 0
    for number, shape in enumerate(shapes):
        # So many of the arguments are needed for the tangents that follow.
        stop = len(arguments) - (len(shapes) - number - 1)
        fitting = [i for i in range(start, stop) if _fits(arguments[i], shape)]
        _one_of([arguments[i] for i in fitting], shape, eqn)
        found.append(arguments[fitting[0]])
        start = fitting[0] + 1
    return found


def _one_of(candidates: Sequence[Keeps], shape: tuple[Shape, Shape], eqn: Equation) -> Keeps:
    """The one way in which a value came to its shape."""
    if shape[0] == shape[1]:
        return tuple(np.ones(n, bool) for n in shape[0])
    fitting = [keeps for keeps in candidates if _fits(keeps, shape)]
    if len({tuple(keep.tobytes() for keep in keeps) for keeps in fitting}) != 1:
        raise ValueError(
            f"{eqn.primitive} at {eqn.scope or 'the top'}: cannot tell how a value of its derivative rule came from shape "
            f"{shape[0]} to {shape[1]} ({len(fitting)} candidates). Exclude the layers around it."
        )
    return fitting[0]
