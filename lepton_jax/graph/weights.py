"""Where a model multiplies by its weights, and each of them as a matrix (inputs, outputs)."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path
from lepton_jax.graph import _compat
from lepton_jax.graph.forward import Forward
from lepton_jax.graph.primitives import OWN_DERIVATIVES, PASSING, PLAIN_CALLS, PRODUCTS, REMATS
from lepton_jax.graph.trace import CallPath, Equation, Traced


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A leaf as the matrix that its inputs are multiplied by: ``inputs @ matrix(leaf)``.

    Args:
      shape: of the leaf.
      index: (inputs, outputs), the flat position in the leaf of every entry of the matrix; each position once.
      stacked: lengths of the scans that take the leaf apart, layer by layer: there is a matrix for each, `index` is the
        position in one layer's part, and matrices are (*stacked, inputs, outputs).

    Example:
      >>> layout = Layout(shape=(3, 2), index=np.arange(6).reshape(3, 2).T)  # a leaf that is used transposed
      >>> layout.matrix(jnp.arange(6.0).reshape(3, 2)).tolist()
      [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
      >>> layout.leaf(layout.matrix(jnp.arange(6.0).reshape(3, 2))).tolist()
      [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    """

    shape: tuple[int, ...]
    index: np.ndarray
    stacked: tuple[int, ...] = ()

    @property
    def in_order(self) -> bool:
        """Whether the matrix is the leaf reshaped."""
        return bool((self.index.reshape(-1) == np.arange(self.index.size)).all())

    def matrix(self, leaf: Array) -> Array:
        """Return the leaf's entries as (inputs, outputs)."""
        flat = jnp.reshape(leaf, (*self.stacked, -1))
        return (flat if self.in_order else flat[..., self.index.reshape(-1)]).reshape(*self.stacked, *self.index.shape)

    def leaf(self, matrix: Array) -> Array:
        """Return a matrix of (inputs, outputs) in the leaf's shape."""
        flat = jnp.reshape(matrix, (*self.stacked, -1))
        if not self.in_order:
            flat = jnp.zeros_like(flat).at[..., self.index.reshape(-1)].set(flat, unique_indices=True)
        return flat.reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """A dot or a convolution with a leaf.

    Args:
      operation: its path.
      name: its name.
      operand: which of its operands comes from the leaf.
      layout: the leaf as a matrix.
      levels: which of the scans around the operation, from outside in, take the leaf apart.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: v["w"].T @ x, {"w": jnp.ones((3, 2))}, jnp.ones((3, 5)))
      >>> [use] = weight_uses(graph, ["w"])["w"]
      >>> use.name, use.operand, use.layout.shape
      ('dot_general', 0, (3, 2))
    """

    operation: CallPath
    name: str
    operand: int
    layout: Layout
    levels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """What of a leaf a value in a graph is: which entries of it, or of one layer's part of it, are where."""

    path: Path
    index: np.ndarray
    stacked: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()

    def part(self, level: int) -> "_Form | None":
        """What one step of a scan gets, at a depth of scans; None if the leading axis is not the leaf's own."""
        if not (self.index.reshape(-1) == np.arange(self.index.size)).all():
            return None
        length, *shape = self.index.shape
        index = np.arange(math.prod(shape)).reshape(shape)
        return replace(self, index=index, stacked=(*self.stacked, length), levels=(*self.levels, level))


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
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v["w"].T, {"w": jnp.ones((2, 3))}, jnp.ones((1, 3)))
      >>> [use] = weight_uses(graph, ["w"])["w"]
      >>> use.name, use.layout.index.shape
      ('dot_general', (3, 2))
    """
    shapes = {p: tuple(aval.shape) for p, aval in zip(traced.variables, traced.in_avals) if p in selected}
    search = _Search(traced, shapes)
    given = [search.start(path) if path in shapes else None for path in traced.variables]
    search.body(traced.jaxpr, traced.consts, [*given, *(None for _ in traced.inputs)])
    with collect("Every selected leaf must be a weight of dots or convolutions; exclude the others by `select`") as problems:
        for path in selected:
            uses, lost = search.uses.get(path, []), search.lost.get(path, [])
            if path not in shapes:
                problems.append(f"{path}: is no variable; there are {', '.join(traced.variables)}")
            elif not uses:
                problems.append(f"{path}: reaches none that could be followed; it goes into {', '.join(lost) or 'nothing'}")
            elif any(not _alike(use.layout, uses[0].layout) for use in uses):
                problems.append(f"{path}: is used in different layouts, by {', '.join(use.name for use in uses)}")
    return search.uses


@checked
def input_rows(use: Use, eqn: Equation, values: Sequence[Any]) -> Array:
    """Return what a leaf is multiplied by: rows of inputs, such that the operation's result is ``rows @ matrix``, reshaped.

    Args:
      use: of the leaf, by this operation.
      eqn: the dot or convolution.
      values: its operands.

    Returns:
      (rows, inputs). Of a convolution: the patches under the kernel, position by position, padding as zeros.

    Example:
      >>> from lepton_jax.graph.trace import trace
      >>> graph = trace(lambda v, x: x @ v, jnp.ones((2, 1)), jnp.ones((4, 3, 2)))
      >>> [use] = weight_uses(graph, [""])[""]
      >>> input_rows(use, next(graph.equations()), [jnp.ones((4, 3, 2)), jnp.ones((2, 1))]).shape
      (12, 2)
    """
    size = use.layout.index.shape[0]
    x = values[1 - use.operand]
    if eqn.primitive == "dot_general":
        axes = eqn.params["dimension_numbers"][0][1 - use.operand]
        free = [axis for axis in range(x.ndim) if axis not in axes]
        return jnp.transpose(x, (*free, *axes)).reshape(-1, size)
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.in_avals[1].shape
    patches = jax.lax.conv_general_dilated_patches(
        jnp.transpose(x, numbers.lhs_spec),
        [kernel[axis] for axis in numbers.rhs_spec[2:]],
        eqn.params["window_strides"],
        eqn.params["padding"],
        lhs_dilation=eqn.params["lhs_dilation"],
        rhs_dilation=eqn.params["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    patches = jnp.moveaxis(patches, 1, -1)  # channels first in them; in the matrix they are last, next to each other
    channels = x.shape[numbers.lhs_spec[1]]
    return jnp.swapaxes(patches.reshape(-1, channels, size // channels), 1, 2).reshape(-1, size)


def _alike(one: Layout, other: Layout) -> bool:
    return one.stacked == other.stacked and np.array_equal(one.index, other.index)


class _Search(Forward[_Form | None]):
    """Follows leaves through a graph, and notes where each is used and where it is lost."""

    def __init__(self, traced: Traced, shapes: Mapping[Path, tuple[int, ...]]):
        super().__init__()
        self.traced, self.shapes, self.depth = traced, shapes, 0
        self.uses: dict[Path, list[Use]] = {}
        self.lost: dict[Path, list[str]] = {}

    def start(self, path: Path) -> _Form:
        shape = self.shapes[path]
        return _Form(path=path, index=np.arange(math.prod(shape)).reshape(shape))

    def constant(self, value: Any) -> None:
        return None

    def operation(self, eqn: Equation, given: list[_Form | None]) -> list[_Form | None]:
        results: list[_Form | None] = [None] * len(eqn.outvars)
        leaves = {place: form for place, form in enumerate(given) if form is not None}
        if leaves and eqn.primitive in PRODUCTS:
            self._record(eqn, leaves)
            return results
        for place, form in leaves.items():
            moved = _moved(eqn, form.index)
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
            part = form.part(self.depth - 1) if form and position in body.scanned_in else form
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
        params = eqn.params
        if eqn.primitive == "dot_general":
            contracting, batch = params["dimension_numbers"]
            usable = len(leaves) == 1 and not batch[0]
        else:
            usable = list(leaves) == [1] and params["feature_group_count"] == params["batch_group_count"] == 1
        if not usable:
            for form in leaves.values():
                self._lose(form, eqn, " with groups, batch axes or two leaves")
            return
        [(place, form)] = leaves.items()
        index = form.index
        if eqn.primitive == "dot_general":
            axes = tuple(contracting[place])
            free = tuple(axis for axis in range(index.ndim) if axis not in axes)
            width = math.prod(index.shape[axis] for axis in axes)
            matrix = np.transpose(index, (*axes, *free)).reshape(width, -1)
        else:
            out, into, *space = params["dimension_numbers"].rhs_spec
            matrix = np.transpose(index, (*space, into, out)).reshape(-1, index.shape[out])
        layout = Layout(shape=self.shapes[form.path], index=matrix, stacked=form.stacked)
        name = self.traced.names[eqn.path]
        use = Use(operation=eqn.path, name=name, operand=place, layout=layout, levels=form.levels)
        self.uses.setdefault(form.path, []).append(use)

    def _lose(self, form: _Form, eqn: Equation, why: str = "") -> None:
        self.lost.setdefault(form.path, []).append(f"{self.traced.names.get(eqn.path, eqn.primitive)}{why}")


def _moved(eqn: Equation, index: np.ndarray) -> np.ndarray | None:
    """Where a leaf's entries are in the result of an operation, or None if it computes with them."""
    match eqn.primitive:
        case "transpose":
            return np.transpose(index, eqn.params["permutation"])
        case "reshape" if eqn.params.get("dimensions") is None:
            return index.reshape(eqn.params["new_sizes"])
        case "squeeze":
            return np.squeeze(index, axis=tuple(eqn.params["dimensions"]))
        case "broadcast_in_dim" if math.prod(eqn.params["shape"]) == index.size:
            return index.reshape(eqn.params["shape"])
        case "rev":
            return np.flip(index, eqn.params["dimensions"])
        case name if name in PASSING | {"reduce_precision"}:
            return index
    return None
