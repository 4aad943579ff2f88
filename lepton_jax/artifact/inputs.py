"""The inputs of a program: which of their axes have names, and their trees as a file can have them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.kinds import wrong_leaf
from lepton_jax.core.typing import PyTree

Names = Mapping[int, str]
"""Axis of an array -> the name of its length."""
Axes = Names | Sequence[Names]
"""Of all arrays of the inputs, or one for each of them, in the order of `jax.tree.leaves`."""


def plain(tree: Any) -> Any:
    """Return a tree as dicts, lists and tuples: a named tuple as a tuple, a dataclass as a dict of its fields.

    Example:
      >>> from collections import namedtuple
      >>> plain([namedtuple("Pair", "a b")(1, 2)])
      [(1, 2)]
    """
    if tree is None or jax.tree_util.all_leaves([tree]):
        return tree
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    children = [plain(child) for _, child in entries]
    if type(tree) is list:
        return children
    if isinstance(tree, tuple):
        return tuple(children)
    return {jax.tree_util.keystr(keys, simple=True): child for (keys, _), child in zip(entries, children)}


class Restored:
    """Makes of plain inputs those that a function was written for.

    Args:
      inputs: an example of the latter.

    Example:
      >>> from collections import namedtuple
      >>> Restored((namedtuple("Pair", "a b")(1, 2),))(((3, 4),))
      (Pair(a=3, b=4),)
    """

    def __init__(self, inputs: tuple[Any, ...]):
        leaves, self.tree = jax.tree.flatten(inputs)
        self.count = len(leaves)
        # Dicts are sorted by their keys, which fields of a dataclass need not be.
        self.places = jax.tree.leaves(plain(jax.tree.unflatten(self.tree, range(self.count))))

    def __call__(self, inputs: tuple[Any, ...]) -> Any:
        found = dict(zip(self.places, jax.tree.leaves(inputs)))
        return jax.tree.unflatten(self.tree, [found[place] for place in range(self.count)])


def guessed(static: Any) -> Iterator[Any]:
    """Yield the inputs with every leading length symbolic, then with that of the first input alone."""
    lengths = list(dict.fromkeys(leaf.shape[0] for leaf in jax.tree.leaves(static) if leaf.shape))
    for some in dict.fromkeys((tuple(lengths), tuple(lengths[:1]))):
        if some:
            sizes = dict(zip(some, export.symbolic_shape(",".join(["b", *(f"b{i}" for i in range(1, len(some)))]))))
            yield jax.tree.map(partial(_with_batch, sizes), static)


def _with_batch(sizes: Mapping[int, Any], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not leaf.shape:
        return leaf
    return jax.ShapeDtypeStruct((sizes.get(leaf.shape[0], leaf.shape[0]), *leaf.shape[1:]), leaf.dtype)


def named(static: Any, axes: Axes, constraints: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """Return the inputs with symbolic lengths of the named axes, and the lengths that the examples have.

    Raises:
      ValueError: for a name that is none, an axis that there is not, or lengths of one name that differ.
    """
    leaves, tree = jax.tree.flatten(static)
    several = [axes] * len(leaves) if isinstance(axes, Mapping) else list(axes)
    sizes: dict[str, int] = {}
    with collect("save: axes must name axes of the inputs, {0: 'batch', 1: 'time'}, of all or for each array") as problems:
        if len(several) != len(leaves):
            problems.append(
                f"{len(several)} mappings for {len(leaves)} arrays; give one for each, {{}} for one whose axes are fixed"
            )
        for number, (leaf, names) in enumerate(zip(leaves, several)):
            for axis, name in names.items():
                problem = _problem(leaf.shape, axis, name, sizes, everywhere=isinstance(axes, Mapping))
                problems += [f"array {number}: {problem}"] if problem else []
        if isinstance(axes, Mapping):
            ndim = max((len(leaf.shape) for leaf in leaves), default=0)
            problems += [f"axis {axis!r} ({name!r}): no input has it" for axis, name in axes.items() if not _within(axis, ndim)]
    if not sizes:
        return static, {}
    try:
        dims = dict(zip(sizes, export.symbolic_shape(",".join(sizes), constraints=list(constraints))))
    except ValueError as error:
        raise ValueError(f"save: constraints must be like 'time <= 512'; got {constraints!r}: {error}") from error

    def shaped(leaf: jax.ShapeDtypeStruct, names: Names) -> jax.ShapeDtypeStruct:
        shape = tuple(dims[names[axis]] if axis in names else n for axis, n in enumerate(leaf.shape))
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.unflatten(tree, map(shaped, leaves, several)), sizes


def _within(axis: Any, ndim: int) -> bool:
    return type(axis) is int and 0 <= axis < ndim


def _problem(shape: tuple[int, ...], axis: Any, name: Any, sizes: dict[str, int], *, everywhere: bool) -> str | None:
    """What is wrong with the name of an axis; its length is noted."""
    if not (isinstance(name, str) and name.isidentifier()):
        return f"axis {axis!r} must have a name like 'time'; got {name!r}"
    if not _within(axis, len(shape)):
        return None if everywhere else f"axis {axis!r} ({name!r}) must be from 0 to {len(shape) - 1}"
    if sizes.setdefault(name, shape[axis]) != shape[axis]:
        return f"axis {axis} ({name!r}) is {shape[axis]} long, and another of that name {sizes[name]}"
    return None


def wide(dtype: Any) -> str:
    """What to do to have numbers of 64 bits in jax; nothing for others, or where it has them.

    Example:
      >>> wide(jnp.dtype("float32")), wide(jnp.dtype("float64"))
      ('', "jax has float64 only after jax.config.update('jax_enable_x64', True)")
    """
    missing = jnp.dtype(dtype).name in ("float64", "int64", "uint64", "complex128") and not jax.config.read("jax_enable_x64")
    return f"jax has {jnp.dtype(dtype).name} only after jax.config.update('jax_enable_x64', True)" if missing else ""


def _expected(exported: export.Exported) -> tuple[Any, ...]:
    (_, *inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return tuple(inputs)


def names_of(exported: export.Exported) -> tuple[dict[int, str], ...]:
    """The axes of each input array that may have any length, and their names."""
    leaves = jax.tree.leaves(_expected(exported))
    return tuple({axis: str(n) for axis, n in enumerate(leaf.shape) if not isinstance(n, int)} for leaf in leaves)


def inputs_of(exported: export.Exported) -> dict[str, str]:
    """Dtype and shape of each input array, by its path."""
    return {path: leaf.str_short() for path, leaf in paths.flatten(_expected(exported)).items()}


def example_inputs(exported: export.Exported, lengths: Mapping[str, Any]) -> PyTree:
    """Shapes and dtypes of inputs that a program takes.

    Args:
      exported: the program.
      lengths: what is known of the lengths of named axes; any other has a length that no other axis has.
    """
    inputs = _expected(exported)
    dims = [dim for leaf in jax.tree.leaves(inputs) for dim in leaf.shape]
    sizes = {name: n for name, n in lengths.items() if type(n) is int and 0 < n < 1 << 31}
    free = (size for size in itertools.count(2) if size not in dims)
    sizes = {name: sizes.get(name) or next(free) for name in dict.fromkeys(str(n) for n in dims if not isinstance(n, int))}

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sizes.get(str(dim), dim) for dim in leaf.shape), leaf.dtype)

    return jax.tree.map(struct, inputs)


def check_inputs(exported: export.Exported, inputs: tuple[Any, ...], constraints: Sequence[str] = ()) -> None:
    """Raise unless the inputs are what a program takes.

    Raises:
      ValueError: with every input that is missing, unknown, or of another shape or dtype.
    """
    wanted, given = paths.flatten(_expected(exported)), paths.flatten(inputs)
    free = sorted({name for names in names_of(exported) for name in names.values()})
    said = f" ({', '.join(free)}: any length from 1{', ' + ', '.join(constraints) if constraints else ''})" if free else ""
    sizes: dict[str, int] = {}
    with collect(f"the inputs do not fit the program{said}") as problems:
        problems.extend(f"{path}: missing; needs {wanted[path].str_short()}" for path in wanted if path not in given)
        problems.extend(f"{path}: unknown; leave it out" for path in given if path not in wanted)
        for path, needed in ((path, needed) for path, needed in wanted.items() if path in given):
            if said := wrong_leaf(given[path]):
                problems.append(f"{path}: needs {needed.str_short()}; got {said}; give an array")
                continue
            dtype, shape = jnp.result_type(given[path]), jnp.shape(given[path])
            fits = len(shape) == len(needed.shape) and all(
                n == m if isinstance(n, int) else m >= 1 and sizes.setdefault(str(n), m) == m
                for n, m in zip(needed.shape, shape)
            )
            if not fits or dtype != needed.dtype:
                remedy = wide(needed.dtype) or "reshape it or convert it"
                problems.append(f"{path}: needs {needed.str_short()}; got {dtype}{list(shape)}; {remedy}")
