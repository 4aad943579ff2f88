"""Where a model multiplies by its weights, and each of them as a matrix (inputs, outputs)."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.errors import collect
from lepton_jax.core.typing import Array, Path
from lepton_jax.graph import _compat
from lepton_jax.graph.trace import CallPath, Equation, Traced, join

_UNCHANGED = (
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "reduce_precision",
    "sharding_constraint",
)
_PLAIN_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Search:
    """What is found on the way through a graph."""

    traced: Traced
    forms: dict[tuple[CallPath, Any], _Form] = field(default_factory=dict)
    uses: dict[Path, list[Use]] = field(default_factory=dict)
    lost: dict[Path, list[str]] = field(default_factory=dict)


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
    search = _Search(traced=traced)
    shapes = {}
    for path, var, aval in zip(traced.variables, traced.jaxpr.invars, traced.in_avals):
        if path in selected:
            shapes[path] = tuple(aval.shape)
            search.forms[(), var] = _Form(path=path, index=np.arange(math.prod(aval.shape)).reshape(aval.shape))
    _follow(search, traced.jaxpr, (), "", 0, shapes)
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


def _follow(search: _Search, jaxpr: Any, path: CallPath, scope: str, depth: int, shapes: Mapping[Path, Any]) -> None:
    for index, raw in enumerate(jaxpr.eqns):
        eqn = Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)))
        given = [None if _compat.is_literal(v) else search.forms.get((path, v)) for v in eqn.invars]
        if not any(given):
            continue
        if eqn.bodies:
            _enter(search, eqn, given, depth, shapes)
        elif eqn.primitive in ("dot_general", "conv_general_dilated"):
            _record(search, eqn, given, shapes)
        else:
            for form, moved, place in _moved(eqn, given):
                if moved is None:
                    _lose(search, form.path, eqn)
                else:
                    search.forms[path, eqn.outvars[place]] = replace(form, index=moved)


def _enter(search: _Search, eqn: Equation, given: Sequence[Any], depth: int, shapes: Mapping[Path, Any]) -> None:
    """Go into a call with the leaves that it gets, and out of it with those that it returns."""
    for body in eqn.bodies:
        inside = (*eqn.path, body.label)
        carried = {into for _, into in body.carry}
        for position, operand in enumerate(body.operands):
            form = given[operand]
            if form is None:
                continue
            part = form.part(depth) if position in body.scanned_in else form
            # Values cannot be handed out of functions with a derivative rule, nor of loops of unknown length.
            if part is None or position in carried or eqn.primitive in ("while", "custom_jvp_call", "custom_vjp_call"):
                _lose(search, form.path, eqn)
            else:
                search.forms[inside, body.jaxpr.invars[position]] = part
        _follow(search, body.jaxpr, inside, eqn.scope, depth + (eqn.primitive == "scan"), shapes)
        if eqn.primitive in _PLAIN_CALLS:
            for var, result in zip(body.jaxpr.outvars, body.results):
                if not _compat.is_literal(var) and (inside, var) in search.forms:
                    search.forms[eqn.jaxpr_path, eqn.outvars[result]] = search.forms[inside, var]


def _moved(eqn: Equation, given: Sequence[Any]) -> Iterator[tuple[_Form, np.ndarray | None, int]]:
    """(leaf, where its entries are now, or None if the operation computes with them, which result) of every leaf given."""
    for place, form in enumerate(given):
        if form is None:
            continue
        index = form.index
        moved: np.ndarray | None
        match eqn.primitive:
            case "transpose":
                moved = np.transpose(index, eqn.params["permutation"])
            case "reshape" if eqn.params.get("dimensions") is None:
                moved = index.reshape(eqn.params["new_sizes"])
            case "squeeze":
                moved = np.squeeze(index, axis=tuple(eqn.params["dimensions"]))
            case "broadcast_in_dim" if math.prod(eqn.params["shape"]) == index.size:
                moved = index.reshape(eqn.params["shape"])
            case "rev":
                moved = np.flip(index, eqn.params["dimensions"])
            case name if name in _UNCHANGED:
                moved = index
            case _:
                moved = None
        yield form, moved, place


def _record(search: _Search, eqn: Equation, given: Sequence[Any], shapes: Mapping[Path, Any]) -> None:
    """Note a dot or a convolution with a leaf, as a matrix of (inputs, outputs)."""
    leaves = [place for place, form in enumerate(given) if form is not None]
    params = eqn.params
    if eqn.primitive == "dot_general":
        contracting, batch = params["dimension_numbers"]
        usable = len(leaves) == 1 and not batch[0]
    else:
        usable = leaves == [1] and params["feature_group_count"] == params["batch_group_count"] == 1
    if not usable:
        for place in leaves:
            _lose(search, given[place].path, eqn, " with groups, batch axes or two leaves")
        return
    [place] = leaves
    form = given[place]
    index = form.index
    if eqn.primitive == "dot_general":
        axes = tuple(contracting[place])
        free = tuple(axis for axis in range(index.ndim) if axis not in axes)
        width = math.prod(index.shape[axis] for axis in axes)
        matrix = np.transpose(index, (*axes, *free)).reshape(width, -1)
    else:
        out, into, *space = params["dimension_numbers"].rhs_spec
        matrix = np.transpose(index, (*space, into, out)).reshape(-1, index.shape[out])
    use = Use(
        operation=eqn.path,
        name=search.traced.names[eqn.path],
        operand=place,
        layout=Layout(shape=shapes[form.path], index=matrix, stacked=form.stacked),
        levels=form.levels,
    )
    search.uses.setdefault(form.path, []).append(use)


def _lose(search: _Search, path: Path, eqn: Equation, why: str = "") -> None:
    search.lost.setdefault(path, []).append(f"{search.traced.names.get(eqn.path, eqn.primitive)}{why}")
