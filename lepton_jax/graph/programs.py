"""Compiled programs that all functions of the same operations share: the blocks of a network are compiled once."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from lepton_jax.core.typing import PyTree
from lepton_jax.graph import _compat


def run_shared(function: Callable[..., PyTree], static: tuple[Any, ...], *args: PyTree) -> PyTree:
    """Return ``function(*static, *args)``, compiled, by a program that serves every function of the same operations.

    It is traced once for each function, static arguments and shapes; compiled only if nothing alike has been.

    Args:
      function: of static, hashable arguments first, then of trees of arrays.
      static: the former.
      *args: the latter.

    Example:
      >>> import jax.numpy as jnp
      >>> def scaled(layer, tree):
      ...     return {"y": 2 * tree[layer]}
      >>> tree = {"a": jnp.ones(2), "b": jnp.zeros(2)}
      >>> [run_shared(scaled, (layer,), {layer: tree[layer]})["y"].tolist() for layer in tree]  # one program
      [[2.0, 2.0], [0.0, 0.0]]
    """
    leaves, tree = jax.tree.flatten(args)
    avals = tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
    program = _program(function, static, tree, avals)
    return jax.tree.unflatten(program.out_tree, _compiled(program)(*leaves))


class _Program:
    """A traced function; equal to every other one of the same operations."""

    def __init__(self, closed: Any, out_tree: Any) -> None:
        self.closed, self.out_tree = closed, out_tree
        key = (_key(_compat.open_jaxpr(closed)), *map(id, _compat.consts_of(closed)))
        try:
            self._hash, self._key = hash(key), key
        except TypeError:  # a parameter that cannot be compared: like nothing else
            self._hash, self._key = id(self), (id(self),)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self._key == other._key


@lru_cache(maxsize=512)
def _program(function: Callable[..., PyTree], static: tuple[Any, ...], tree: Any, avals: tuple[Any, ...]) -> _Program:
    args = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in avals])
    closed, shapes = jax.make_jaxpr(lambda *args: function(*static, *args), return_shape=True)(*args)
    return _Program(closed, jax.tree.structure(shapes))


@lru_cache(maxsize=512)
def _compiled(program: _Program) -> Callable[..., Sequence[Any]]:
    return jax.jit(_compat.as_function(program.closed))


def _key(jaxpr: Any) -> tuple[Any, ...]:
    """What a jaxpr computes, whatever its variables are called."""
    numbers: dict[Any, int] = {}

    def atom(one: Any) -> Any:
        if _compat.is_literal(one):
            value = np.asarray(_compat.literal_value(one))
            return repr(one.aval), value.tobytes()
        return numbers.setdefault(one, len(numbers)), repr(one.aval)

    given = tuple(atom(var) for var in (*jaxpr.constvars, *jaxpr.invars))
    steps = tuple(
        (
            eqn.primitive.name,
            tuple(sorted(((name, _part(value)) for name, value in eqn.params.items()), key=lambda item: item[0])),
            tuple(map(atom, eqn.invars)),
            tuple(map(atom, eqn.outvars)),
        )
        for eqn in jaxpr.eqns
    )
    return given, steps, tuple(map(atom, jaxpr.outvars))


def _part(value: Any) -> Any:
    """A parameter, such that equal ones are equal."""
    if _compat.is_jaxpr(value):
        return (_key(_compat.open_jaxpr(value)), *map(id, _compat.consts_of(value)))
    if isinstance(value, list | tuple):
        return tuple(map(_part, value))
    if isinstance(value, dict):
        return tuple((name, _part(part)) for name, part in value.items())
    return value


__all__ = ["run_shared"]
