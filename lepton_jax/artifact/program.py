"""The program: `apply` as StableHLO, with the flat list of dense weights as its first argument and a symbolic batch."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lepton_jax.artifact import foreign_program
from lepton_jax.artifact.leaves import is_key
from lepton_jax.artifact.read_apart import read_apart
from lepton_jax.core import paths
from lepton_jax.core.errors import ArtifactError, collect, one_line
from lepton_jax.core.kinds import wrong_leaf
from lepton_jax.core.packed import is_packed
from lepton_jax.core.typing import PyTree

_WRITTEN: collections.deque[bytes] = collections.deque(maxlen=256)
"""Digests of the newest programs that this process wrote."""
PLATFORMS = ("cpu", "cuda", "tpu")


def _plain_outputs(tree: Any) -> Any:
    """Return outputs as dicts, lists and tuples, so that a file needs no other node type."""
    if tree is None or jax.tree_util.all_leaves([tree]):
        return tree
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    children = [_plain_outputs(child) for _, child in entries]
    if type(tree) is list:
        return children
    if isinstance(tree, tuple):
        return tuple(children)
    return {jax.tree_util.keystr(keys, simple=True): child for (keys, _), child in zip(entries, children)}


def export_program(apply: Callable[..., Any], packed: PyTree, inputs: tuple[Any, ...]) -> tuple[export.Exported, bool]:
    """Export ``apply(variables, *inputs)``.

    Leading axes of inputs are symbolic where the trace allows it: those of one length in the examples are one batch.

    Args:
      apply: pure function.
      packed: the variables, packed or dense.
      inputs: arrays or trees of arrays.

    Returns:
      (the program, taking the flat list of weights and the inputs; whether its batch is symbolic).

    Raises:
      ArtifactError: if it cannot be exported for any platform.
    """
    return _export(apply, *jax.tree.flatten(packed, is_leaf=is_packed), inputs)


def export_native(apply: Callable[..., Any], packed: PyTree, inputs: tuple[Any, ...]) -> tuple[export.Exported, bool]:
    """Export `lepton_jax.native.interpreter` of apply: a program of the packed leaves' own arrays, see `native_weights`.

    Args, Returns, Raises: as `export_program`.
    """
    from lepton_jax.native import packed as run_packed  # not needed to read a file

    return _export(run_packed(apply), *jax.tree.flatten(packed), inputs)


def native_weights(leaves: Iterable[Any]) -> list[Any]:
    """The arrays that a native program takes: those inside the packed leaves."""
    return plain_weights([array for leaf in leaves for array in jax.tree.leaves(leaf)])


def example_inputs(exported: export.Exported) -> tuple[Any, ...]:
    """Shapes and dtypes of inputs that a program takes; a batch has a length that no other leading axis has."""
    (_, *inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    dims = [leaf.shape[0] for leaf in jax.tree.leaves(inputs) if leaf.shape]
    free = (size for size in itertools.count(2) if size not in dims)
    sizes = {name: next(free) for name in dict.fromkeys(str(dim) for dim in dims if not isinstance(dim, int))}

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sizes.get(str(dim), dim) for dim in leaf.shape), leaf.dtype)

    return jax.tree.map(struct, tuple(inputs))


def _export(
    apply: Callable[..., Any], leaves: list[Any], treedef: Any, inputs: tuple[Any, ...]
) -> tuple[export.Exported, bool]:
    """Export a function of the tree of these leaves and the inputs."""
    impls = [jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in leaves]

    def program(flat: list[Any], *inputs: Any) -> Any:
        flat = [leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl) for leaf, impl in zip(flat, impls)]
        return _plain_outputs(apply(jax.tree.unflatten(treedef, flat), *inputs))

    arguments = [_struct(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in leaves]
    static = jax.tree.map(_struct, inputs)
    shapes = [*_symbolic(static), (static, False)]
    problems: list[str] = []
    for some in (PLATFORMS, None):
        # Where not all platforms can lower it, those are kept that can alone.
        platforms = some or tuple(name for name in PLATFORMS if _lower(program, arguments, static, (name,), problems))
        for structs, symbolic in shapes if platforms else ():
            exported = _lower(program, arguments, structs, platforms, problems)
            if exported is not None:
                return exported, symbolic
    raise ArtifactError("apply cannot be exported with `jax.export`: " + problems[-1])


def _symbolic(static: Any) -> Iterator[tuple[Any, bool]]:
    """Yield the inputs with every leading length symbolic, then with that of the first input alone."""
    lengths = list(dict.fromkeys(leaf.shape[0] for leaf in jax.tree.leaves(static) if leaf.shape))
    for some in dict.fromkeys((tuple(lengths), tuple(lengths[:1]))):
        if some:
            sizes = dict(zip(some, export.symbolic_shape(",".join(["b", *(f"b{i}" for i in range(1, len(some)))]))))
            yield jax.tree.map(partial(_with_batch, sizes), static), True


def _with_batch(sizes: Mapping[int, Any], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not leaf.shape:
        return leaf
    return jax.ShapeDtypeStruct((sizes.get(leaf.shape[0], leaf.shape[0]), *leaf.shape[1:]), leaf.dtype)


def _lower(
    program: Callable[..., Any], weights: list[Any], inputs: Any, platforms: tuple[str, ...], problems: list[str]
) -> export.Exported | None:
    """Lower for all these platforms; None, and why, if that cannot be."""
    try:
        with _without_locations():
            return export.export(jax.jit(program), platforms=platforms)(weights, *inputs)
    except Exception as error:  # whatever the traced operations raise
        problems.append(f"{type(error).__name__}: {str(error)[:500]}")
        return None


@contextmanager
def _without_locations() -> Iterator[None]:
    """Keep names of source files and line numbers out of the program: equal models give equal bytes, and fewer."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def plain_weights(weights: list[Any]) -> list[Any]:
    """The arrays that the program takes: the leaves, random keys as their data."""
    return [jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf) for leaf in weights]


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    shape = leaf.shape if hasattr(leaf, "shape") else ()
    return jax.ShapeDtypeStruct(shape, dtype if is_key(leaf) else jax.dtypes.canonicalize_dtype(dtype))


def check_weights(exported: export.Exported, weights: Mapping[str, Any]) -> None:
    """Raise unless the weights, named and in order, are what a program takes.

    Raises:
      ValueError: with every one of another shape or dtype.
    """
    (expected, *_), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    with collect("the variables do not fit the program") as problems:
        for (path, weight), needed in zip(weights.items(), expected):
            if (weight.shape, weight.dtype) != (needed.shape, needed.dtype):
                got = f"{weight.dtype}{list(weight.shape)}"
                problems.append(
                    f"{path}: needs {needed.str_short()}; got {got}; the shapes are those of the file's `variables`"
                )


def check_inputs(exported: export.Exported, inputs: tuple[Any, ...]) -> None:
    """Raise unless the inputs are what a program takes.

    Raises:
      ValueError: with every input that is missing, unknown, or of another shape or dtype.
    """
    (_, *expected), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    wanted, given = paths.flatten(tuple(expected)), paths.flatten(inputs)
    with collect("the inputs do not fit the program (b: any batch size from 1)") as problems:
        problems.extend(f"{path}: missing; needs {wanted[path].str_short()}" for path in wanted if path not in given)
        problems.extend(f"{path}: unknown; leave it out" for path in given if path not in wanted)
        for path, needed in ((path, needed) for path, needed in wanted.items() if path in given):
            if said := wrong_leaf(given[path]):
                problems.append(f"{path}: needs {needed.str_short()}; got {said}; give an array")
                continue
            dtype, shape = jnp.result_type(given[path]), jnp.shape(given[path])
            fits = len(shape) == len(needed.shape) and all(
                n == m if isinstance(n, int) else m >= 1 for n, m in zip(needed.shape, shape)
            )
            if not fits or dtype != needed.dtype:
                problems.append(f"{path}: needs {needed.str_short()}; got {dtype}{list(shape)}; reshape it or convert it")


def deserialize(data: bytes) -> export.Exported:
    """Read a program, of whoever wrote it; see `foreign_program` for what it may be.

    What this process did not write itself is read apart first, see `read_apart`.

    Raises:
      ArtifactError: if the bytes are not one that this version of jax reads, or it could do more than compute.
    """
    foreign_program.check_envelope(data)
    try:
        exported = export.deserialize(bytearray(data))
    except Exception as error:  # whatever the reader of foreign bytes raises
        raise ArtifactError(f"the program cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
    if hashlib.sha256(data).digest() not in _WRITTEN:
        exported = dataclasses.replace(exported, mlir_module_serialized=read_apart(exported.mlir_module_serialized))
    foreign_program.check_module(exported.mlir_module_serialized)
    return exported


def serialize(exported: export.Exported) -> bytes:
    """Return a program's bytes, which this process may then read without a second process."""
    data = bytes(exported.serialize())
    _WRITTEN.append(hashlib.sha256(data).digest())
    return data


@contextmanager
def running(check: Callable[[], None]) -> Iterator[None]:
    """Say what is wrong if a program cannot be run.

    Args:
      check: raises if what it was given is not what it takes.

    Raises:
      ArtifactError: if it was given that; what jax says of a caller's own transformations stays as it is.
    """
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        check()
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        check()
        raise ArtifactError(f"the program cannot be run: {type(error).__name__}: {one_line(error)}") from error
