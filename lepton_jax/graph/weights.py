"""Where a model multiplies by its weights, and each of them as a matrix (inputs, outputs)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Path
from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.layout import Layout, Use, as_matrix
from lepton_jax.graph.primitives import OWN_DERIVATIVES, PASSING, PLAIN_CALLS, PRODUCTS, REMATS
from lepton_jax.graph.trace import Equation, Traced


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """What of a leaf a value in a graph is: (*layers, *the value's shape), the flat position in the leaf of every entry."""

    path: Path
    index: np.ndarray
    levels: tuple[int, ...] = ()

    @property
    def lead(self) -> int:
        """How many axes are those of scans that took the leaf apart."""
        return len(self.levels)


@checked
def weight_uses(traced: Traced, selected: Collection[Path]) -> dict[Path, list[Use]]:
    """Return the dots and convolutions that multiply by the selected leaves, in the order in which they run.

    A leaf is followed through reshapes, transposes, reversals, casts and calls, and, stacked, into scans over it.

    Args:
      traced: the graph.
      selected: paths of variables.

    Returns:
      the uses by path, those leaves first that are used first. All uses of a leaf have the same layout.

    Raises:
      ValueError: with every selected leaf that reaches no dot or convolution in this way, or several in different layouts, and
        with what stands in its way.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v["w"].T, {"w": jnp.ones((2, 3))}, jnp.ones((1, 3)))
      >>> [use] = weight_uses(graph, ["w"])["w"]
      >>> use.name, use.layout.index.shape
      ('dot_general', (3, 2))
    """
    uses, left = uses_and_rest(traced, selected)
    with collect("Every selected leaf must be a weight of dots or convolutions; exclude the others by `select`") as problems:
        problems.extend(f"{path}: {why}" for path, why in left.items())
    return uses


def uses_and_rest(traced: Traced, wanted: Collection[Path]) -> tuple[dict[Path, list[Use]], dict[Path, str]]:
    """Return what `weight_uses` does, of those leaves that have uses, and for each of the others why it has none.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ jnp.sin(v["w"]), {"w": jnp.ones((2, 3))}, jnp.ones((1, 2)))
      >>> uses_and_rest(graph, ["w"])
      ({}, {'w': 'reaches none that could be followed; it goes into sin'})
    """
    search = leaves_followed(traced, wanted)
    left: dict[Path, str] = {}
    for path in wanted:
        uses, lost = search.uses.get(path, []), search.lost.get(path, [])
        if path not in search.shapes:
            left[path] = f"is no variable; there are {', '.join(traced.variables)}"
        elif not uses:
            left[path] = f"reaches none that could be followed; it goes into {', '.join(lost) or 'nothing'}"
        elif any(not np.array_equal(use.layout.index, uses[0].layout.index) for use in uses):
            left[path] = f"is used in different layouts, by {', '.join(use.name for use in uses)}"
    return {path: uses for path, uses in search.uses.items() if path not in left}, left


def leaves_followed(traced: Traced, wanted: Collection[Path]) -> "_Search":
    """Follow leaves through a graph: in `found` stands which entries of them the values are; see `Forward`."""
    shapes = {p: tuple(aval.shape) for p, aval in zip(traced.variables, traced.in_avals) if p in wanted}
    search = _Search(traced, shapes)
    given = [search.start(path) if path in shapes else None for path in traced.variables]
    search.body(traced.jaxpr, traced.consts, [*given, *(None for _ in traced.inputs)])
    return search


class _Search(Forward[_Form | None]):
    """Follows leaves through a graph, and notes where each is used and where it is lost."""

    def __init__(self, traced: Traced, shapes: Mapping[Path, tuple[int, ...]]):
        super().__init__()
        self.traced, self.shapes, self.depth = traced, shapes, 0
        self.uses: dict[Path, list[Use]] = {}
        self.lost: dict[Path, list[str]] = {}

    def start(self, path: Path) -> _Form:
        shape = self.shapes[path]
        count = math.prod(shape)
        return _Form(path=path, index=np.arange(count, dtype=np.int32 if count < 2**31 else np.int64).reshape(shape))

    def constant(self, value: Any) -> None:
        return None

    def operation(self, eqn: Equation, given: list[_Form | None]) -> list[_Form | None]:
        results: list[_Form | None] = [None] * len(eqn.outvars)
        leaves = {place: form for place, form in enumerate(given) if form is not None}
        if leaves and eqn.primitive in PRODUCTS:
            self._record(eqn, leaves)
            return results
        for place, form in leaves.items():
            moved = _moved(eqn, form)
            if moved is None:
                self._lose(form, eqn)
            else:
                results[place] = replace(form, index=moved)
        return results

    def call(self, eqn: Equation, given: list[_Form | None]) -> list[_Form | None]:
        """Go into a call with the leaves that it gets, and out of it with those that it returns."""
        results: list[_Form | None] = [None] * len(eqn.outvars)
        self.depth += eqn.primitive == "scan"
        for body in eqn.bodies if any(given) else ():
            leaving = self.inside(eqn, body, self._entering(eqn, body, given))
            if eqn.primitive in PLAIN_CALLS | REMATS:
                results = leaving
        self.depth -= eqn.primitive == "scan"
        return results

    def _entering(self, eqn: Equation, body: _compat.Body, given: list[_Form | None]) -> list[_Form | None]:
        carried = {into for _, into in body.carry}
        entering: list[_Form | None] = []
        for position, form in enumerate(given[operand] for operand in body.operands):
            part = form
            if form and position in body.scanned_in:
                part = replace(form, levels=(*form.levels, self.depth - 1))
            # Values cannot be handed out of functions with a derivative rule, nor of loops of unknown length; a device may
            # have a part.
            if part is None or position in carried or eqn.primitive in OWN_DERIVATIVES | {"while", "shard_map"}:
                part = None
                if form is not None:
                    self._lose(form, eqn)
            entering.append(part)
        return entering

    def _record(self, eqn: Equation, leaves: Mapping[int, _Form]) -> None:
        """Note a dot or a convolution with a leaf, as a matrix of (inputs, outputs)."""
        [(place, form), *others] = leaves.items()
        matrix = None if others else as_matrix(eqn, place, form.index, form.lead)
        if matrix is None:
            for one in leaves.values():
                self._lose(one, eqn, " of two leaves, or as what a kernel goes over")
            return
        layout = Layout(shape=self.shapes[form.path], index=matrix)
        name = self.traced.names[eqn.path]
        use = Use(operation=eqn.path, name=name, operand=place, layout=layout, levels=form.levels)
        self.uses.setdefault(form.path, []).append(use)

    def _lose(self, form: _Form, eqn: Equation, why: str = "") -> None:
        self.lost.setdefault(form.path, []).append(f"{self.traced.names.get(eqn.path, eqn.primitive)}{why}")


def _moved(eqn: Equation, form: _Form) -> np.ndarray | None:
    """Where a leaf's entries are in the result of an operation, or None if it computes with them."""
    index, lead = form.index, form.lead
    layers, whole = index.shape[:lead], tuple(range(lead))
    match eqn.primitive:
        case "transpose":
            return np.transpose(index, (*whole, *(lead + axis for axis in eqn.params["permutation"])))
        case "reshape":
            order = eqn.params.get("dimensions") or range(index.ndim - lead)  # the axes are gone through in this order
            return np.transpose(index, (*whole, *(lead + axis for axis in order))).reshape(*layers, *eqn.params["new_sizes"])
        case "squeeze":
            return np.squeeze(index, axis=tuple(lead + axis for axis in eqn.params["dimensions"]))
        case "broadcast_in_dim" if math.prod((*layers, *eqn.params["shape"])) == index.size:
            return index.reshape(*layers, *eqn.params["shape"])
        case "rev":
            return np.flip(index, tuple(lead + axis for axis in eqn.params["dimensions"]))
        case name if name in PASSING | {"reduce_precision"}:
            return index
    return None


__all__ = ["Layout", "Use", "leaves_followed", "uses_and_rest", "weight_uses"]
