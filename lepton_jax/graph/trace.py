"""Tracing: a pure function as a labelled jaxpr, its graph."""

import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import one_line
from lepton_jax.core.kinds import check_kind
from lepton_jax.core.paths import path_str
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.graph import _compat
from lepton_jax.graph.primitives import PLAIN_CALLS

Apply = Callable[..., PyTree]
"""A pure function ``apply(variables, *inputs, **static) -> outputs``."""

_UNKNOWN = "an unknown line"
CallPath = tuple[int | str, ...]
"""Where an equation stands: its index, preceded by index and body label of every call around it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Equation:
    """One operation of a graph, in its place.

    Two call sites may share one inner jaxpr, so an equation is identified by its `path`, not by its object, and a value
    by ``(path of the jaxpr, variable)``.

    Example:
      >>> import jax.numpy as jnp
      >>> [eqn] = trace(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3))).equations()
      >>> eqn.primitive, eqn.path, eqn.out_avals[0].shape
      ('dot_general', (0,), (5, 2))
    """

    raw: _compat.JaxprEqn
    path: CallPath
    scope: str
    times: int | None = 1
    """How often it runs: the product of the lengths of the scans around it; None inside a while loop. In a `shard_map`, times
    the devices along those axes of the mesh by which some array is split."""

    @property
    def primitive(self) -> str:
        """The operation's name, e.g. ``'dot_general'``."""
        return self.raw.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """The operation's parameters."""
        return self.raw.params

    @property
    def invars(self) -> Sequence[Any]:
        """The operands: variables or literals."""
        return self.raw.invars

    @property
    def outvars(self) -> Sequence[Any]:
        """The results' variables."""
        return self.raw.outvars

    @property
    def in_avals(self) -> list[Any]:
        """The operands' shapes and dtypes as traced."""
        return [v.aval for v in self.raw.invars]

    @property
    def out_avals(self) -> list[Any]:
        """The results' shapes and dtypes as traced."""
        return [v.aval for v in self.raw.outvars]

    @property
    def bodies(self) -> tuple[_compat.Body, ...]:
        """The inner jaxprs, if it is a call or a loop; see `lepton_jax.graph._compat.Body`."""
        return _compat.bodies(self.raw)

    @property
    def is_plain_call(self) -> bool:
        """Whether it stands for its body and nothing else: no loop, no derivative rule of its own, no placement."""
        if self.primitive not in PLAIN_CALLS or len(self.bodies) != 1:
            return False
        placed = (*(self.params.get("in_shardings") or ()), *(self.params.get("out_shardings") or ()))
        return not any(isinstance(one, jax.sharding.Sharding) for one in placed)

    @property
    def jaxpr_path(self) -> CallPath:
        """The path of the jaxpr that it stands in."""
        return self.path[:-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """The graph of ``apply(variables, *inputs, **keywords)``: a jaxpr whose inputs and outputs have names.

    The jaxpr's inputs are the leaves of `variables`, then those of the inputs and of the keywords that are arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> traced = trace(lambda v, x: {"y": x @ v["kernel"]}, {"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3)))
      >>> traced.variables, traced.inputs, traced.outputs
      (('kernel',), ('0',), ('y',))
    """

    jaxpr: _compat.Jaxpr
    consts: Sequence[Any]
    variables: tuple[Path, ...]
    """The path of every variable leaf, in the order of the jaxpr's first inputs."""
    inputs: tuple[Path, ...]
    """The path of every other input leaf: the position first (``'0'``), or the keyword (``'rngs/dropout'``)."""
    outputs: tuple[Path, ...]
    in_tree: Any
    out_tree: Any
    updates: Mapping[int, Path]
    """Which outputs are updated state: index of the output -> path of the variable it updates."""
    name: str

    @property
    def in_avals(self) -> list[Any]:
        """Shapes and dtypes of all inputs, variables first."""
        return [v.aval for v in self.jaxpr.invars]

    @property
    def out_avals(self) -> list[Any]:
        """Shapes and dtypes of the flat outputs."""
        return [v.aval for v in self.jaxpr.outvars]

    def equations(self) -> Iterator[Equation]:
        """Every operation in program order, a call before what it holds."""
        return walk(self.jaxpr)

    @cached_property
    def names(self) -> Mapping[CallPath, str]:
        """A readable, unique name for every operation: its scope, its primitive, and a count from the second on."""
        seen: Counter[str] = Counter()
        names = {}
        for eqn in self.equations():
            base = join(eqn.scope, eqn.primitive)
            seen[base] += 1
            names[eqn.path] = base if seen[base] == 1 else f"{base}_{seen[base] - 1}"
        return names

    def stacks(self, eqn: Equation) -> tuple[tuple[str, int], ...]:
        """The scans and `shard_map`s around an operation, from outside in, each with its number of steps or devices.

        A value that is handed out of them has an axis for each, in this order.
        """
        return tuple(found for path, found in self._stacks.items() if eqn.path[: len(path)] == path)

    @cached_property
    def _stacks(self) -> Mapping[CallPath, tuple[str, int]]:
        calls = [(eqn, body) for eqn in self.equations() for body in eqn.bodies]
        return {eqn.path: (eqn.primitive, body.stack) for eqn, body in calls if body.stack is not None}

    def flatten(self, variables: PyTree, inputs: Sequence[Any], arrays: Mapping[str, Any]) -> list[Any]:
        """The values of the jaxpr's inputs, in order."""
        leaves, tree = jax.tree.flatten((variables, tuple(inputs), dict(arrays)))
        if tree != self.in_tree:
            raise ValueError(f"{self.name} was traced with the arguments {self.in_tree}; got {tree}.")
        return leaves


def equations_of(jaxpr: Any, path: CallPath = (), scope: str = "", times: int | None = 1) -> Iterator[Equation]:
    """Yield the operations of an open jaxpr that stands at `path` in `scope`, but not those of its inner ones."""
    for index, raw in enumerate(jaxpr.eqns):
        yield Equation(raw=raw, path=(*path, index), scope=join(scope, _compat.scope_of(raw)), times=times)


@checked
def walk(jaxpr: Any, path: CallPath = (), scope: str = "", times: int | None = 1) -> Iterator[Equation]:
    """Yield every operation of a jaxpr and of its inner jaxprs, a call before what it holds.

    Example:
      >>> import jax.numpy as jnp
      >>> jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=3))(1.0)
      >>> [(eqn.primitive, eqn.path, eqn.times) for eqn in walk(jaxpr)]
      [('scan', (0,), 1), ('sin', (0, 'body', 0), 3)]
    """
    for eqn in equations_of(_compat.open_jaxpr(jaxpr), path, scope, times):
        yield eqn
        for body in eqn.bodies:
            inner = None if times is None or body.times is None else times * body.times
            yield from walk(body.jaxpr, (*eqn.path, body.label), eqn.scope, inner)


def join(outer: str, inner: str) -> str:
    """Join two scopes by '/', either of which may be empty."""
    return f"{outer}/{inner}" if outer and inner else outer or inner


def split_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part keywords into those that hold arrays, which are traced, and the static others.

    A keyword is traced if all its leaves are arrays (``rngs={'dropout': key}``), else it is static (``train=True``).
    """
    arrays = {}
    for name, value in keywords.items():
        leaves = jax.tree.leaves(value)
        if leaves and all(is_array(leaf) for leaf in leaves):
            arrays[name] = value
    return arrays, {name: value for name, value in keywords.items() if name not in arrays}


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, a random key, or the shape and dtype of one."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def trace(apply: Apply, variables: PyTree, *inputs: Any, **static: Any) -> Traced:
    """Trace a pure function into its graph.

    Only shapes and dtypes are read: `jax.ShapeDtypeStruct` leaves will do, and nothing is computed.

    Args:
      apply: ``apply(variables, *inputs, **static) -> outputs``; whatever it traces through.
      variables: the tree of its parameters and state, e.g. ``{'params': ..., 'batch_stats': ...}`` or an `nnx.State`.
      *inputs: its other arguments, trees of arrays.
      **static: its keywords; those whose leaves are all arrays (random keys) are inputs too.

    Returns:
      The graph, with the path of every variable and input, and which outputs are updated state: those whose path ends
      like one variable's and that have its shape and dtype.

    Raises:
      TypeError: if `apply` cannot be traced, or an argument's leaf is no array; with what and where.

    Example:
      >>> import jax.numpy as jnp
      >>> graph = trace(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((3, 2))}, jnp.ones((1, 3)))
      >>> graph.variables, graph.inputs, list(graph.names.values())
      (('kernel',), ('0',), ['dot_general'])
    """
    check_kind("trace: apply", apply, Callable)
    arrays, fixed = split_keywords(static)
    name = getattr(apply, "__qualname__", None) or getattr(apply, "__name__", None) or type(apply).__name__
    paths, in_tree = jax.tree_util.tree_flatten_with_path((variables, tuple(inputs), arrays))
    _check_leaves(name, paths)

    def flat(*leaves: Any) -> PyTree:
        held, args, keywords = jax.tree.unflatten(in_tree, leaves)
        return apply(held, *args, **keywords, **fixed)

    try:
        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*(leaf for _, leaf in paths))
    except jax.errors.JAXTypeError as error:
        raise TypeError(_untraceable(name, error, [path_str(kp) for kp, _ in paths])) from error
    except Exception as error:
        if _is_ours(error):
            raise
        raise _refused(name, error, inputs) from error
    outputs, out_tree = jax.tree_util.tree_flatten_with_path(shapes)
    jaxpr = _compat.open_jaxpr(closed)
    out_paths = tuple(path_str(kp) for kp, _ in outputs)
    named = [(path_str(kp[1:]), kp[0].idx == 0) for kp, _ in paths]
    variable_paths = tuple(path for path, is_variable in named if is_variable)
    return Traced(
        jaxpr=jaxpr,
        consts=tuple(_compat.consts_of(closed)),
        variables=variable_paths,
        inputs=tuple(path for path, is_variable in named if not is_variable),
        outputs=out_paths,
        in_tree=in_tree,
        out_tree=out_tree,
        updates=_updates(variable_paths, jaxpr.invars, out_paths, jaxpr.outvars),
        name=name,
    )


def _check_leaves(name: str, paths: Sequence[tuple[Any, Any]]) -> None:
    for key_path, leaf in paths:
        if not (is_array(leaf) or isinstance(leaf, bool | int | float | complex)):
            where = ("variables", "inputs", "keywords")[key_path[0].idx]
            raise TypeError(
                f"{name} cannot be traced: {where}/{path_str(key_path[1:])} must be an array; got {type(leaf).__name__} "
                f"({leaf!r:.60}). Pass what is no array as a keyword, e.g. mode='eval'."
            )


def _untraceable(name: str, error: Exception, paths: Sequence[Path]) -> str:
    sentences = re.split(r"(?<=[.])\s+|\n+", str(error))
    kept = [line.strip() for line in sentences if line.strip() and not line.startswith(("See ", "The error occurred while"))]
    named = " ".join(kept[:4])
    # jax names a flat argument by its position here; give it its path.
    for index in reversed(range(len(paths))):
        named = named.replace(f"leaves[{index}]", paths[index])
    return (
        f"{name} cannot be traced: at {_user_line(error)} it needs the value of an array while only its shape is known. Branch "
        f"with jax.lax.cond or jnp.where, or pass the value as a static keyword. From jax: {named}"
    )


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by this package, which says itself what is wrong."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return f"{os.sep}lepton_jax{os.sep}" in last and last != __file__


def _refused(name: str, error: Exception, inputs: Sequence[Any]) -> Exception:
    """Say what a function was given that it does not take, and what it said."""
    named = [(path_str(key_path), leaf) for key_path, leaf in jax.tree_util.tree_leaves_with_path(tuple(inputs))]
    given = ", ".join(f"{path}: {jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for path, leaf in named[:9]) or "none"
    kind, line = TypeError if isinstance(error, TypeError) else ValueError, _user_line(error)
    where = "" if line == _UNKNOWN else f" at {line}"
    said = one_line(re.sub(r"\(https?://\S+\)", "", str(error)) or type(error).__name__, 240)
    return kind(f"{name} does not take these variables with the inputs ({given}). It says{where}: {said}")


def _user_line(error: Exception) -> str:
    """The innermost line of the traceback that is neither jax's nor flax's nor ours."""
    ours = tuple(f"{os.sep}{package}{os.sep}" for package in ("jax", "flax", "lepton_jax"))
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not any(part in frame.filename for part in ours)]
    return f"{outside[-1].filename}:{outside[-1].lineno}" if outside else _UNKNOWN


def _updates(
    variables: Sequence[Path], invars: Sequence[Any], outputs: Sequence[Path], outvars: Sequence[Any]
) -> dict[int, Path]:
    like = {path: (var.aval.shape, var.aval.dtype) for path, var in zip(variables, invars)}
    found = {}
    for index, (output, var) in enumerate(zip(outputs, outvars)):
        parts = output.split("/")
        for start in range(len(parts)):
            suffix = parts[start:]
            same = [path for path in variables if path.split("/")[-len(suffix) :] == suffix]
            # A last key alone ('mean') is a coincidence, unless it is the variable's whole path.
            same = [path for path in same if len(suffix) > 1 or path == suffix[0]]
            same = [path for path in same if like[path] == (var.aval.shape, var.aval.dtype)]
            if len(same) == 1:
                found[index] = same[0]
            if same:
                break
    return found
