"""The program: `apply` as StableHLO, with the flat list of dense weights as its first argument and a symbolic batch."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from lepton_jax.artifact import foreign_program
from lepton_jax.artifact.compact import compact
from lepton_jax.artifact.inputs import Axes, Restored, guessed, named, names_of, plain, wide
from lepton_jax.artifact.leaves import is_key
from lepton_jax.artifact.lowered import lowered
from lepton_jax.artifact.read_apart import read_apart
from lepton_jax.core.errors import ArtifactError, collect, one_line
from lepton_jax.core.packed import is_packed
from lepton_jax.core.typing import PyTree

_WRITTEN: collections.deque[bytes] = collections.deque(maxlen=256)
"""Digests of the newest programs that this process wrote."""
PLATFORMS = ("cpu", "cuda", "tpu")


class FixedBatchWarning(UserWarning):
    """A program takes inputs of the examples' shapes only: it could not be exported for others.

    Example:
      >>> import tempfile, warnings, jax.numpy as jnp
      >>> from lepton_jax import save
      >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True, action="always") as found:
      ...     save(f"{folder}/m.lepton", lambda v, x: x.reshape(2, -1) * v, jnp.ones(()), jnp.ones((4, 3)))
      >>> [one.category.__name__ for one in found]
      ['FixedBatchWarning']
    """


class Program(NamedTuple):
    """What was exported.

    Attributes:
      exported: takes the flat list of weights and the inputs, as dicts, lists and tuples.
      symbolic: whether any axis of its inputs may have any length.
      lengths: those of the named axes in the examples.
      exact: whether the same operations compute the same at every length, as far as traces tell: its results are then those of
        ``jax.jit(apply)`` bit for bit, or of ``jax.jit(fast_lowering(apply))`` where it runs so, and else within rounding.

    Example:
      >>> export_program(lambda v, x: x * v, jnp.ones(()), (jnp.ones((3, 2)),))[1:]
      (True, {}, True)
    """

    exported: export.Exported
    symbolic: bool
    lengths: dict[str, int]
    exact: bool


def export_program(
    apply: Callable[..., Any],
    packed: PyTree,
    inputs: tuple[Any, ...],
    axes: Axes | None = None,
    constraints: Sequence[str] = (),
) -> Program:
    """Export ``apply(variables, *inputs)``.

    Args:
      apply: pure function.
      packed: the variables, packed or dense.
      inputs: arrays or trees of arrays.
      axes: which axes of the inputs may have any length, and their names. None: leading axes where the trace allows it, those
        of one length in the examples being one batch.
      constraints: on the named lengths, as `jax.export.symbolic_shape` has them.

    Raises:
      ArtifactError: if it cannot be exported for any platform, or not with these axes.
      ValueError: for axes that the inputs do not have.
    """
    return _export(apply, *jax.tree.flatten(packed, is_leaf=is_packed), inputs, axes, constraints)


def export_native(
    apply: Callable[..., Any],
    packed: PyTree,
    inputs: tuple[Any, ...],
    axes: Axes | None = None,
    constraints: Sequence[str] = (),
) -> Program:
    """Export `lepton_jax.native.interpreter` of apply: a program of the packed leaves' own arrays, see `native_weights`.

    Args, Returns, Raises: as `export_program`.
    """
    from lepton_jax.native import packed as run_packed  # not needed to read a file

    return _export(run_packed(apply), *jax.tree.flatten(packed), inputs, axes, constraints)


def native_weights(leaves: Iterable[Any]) -> list[Any]:
    """The arrays that a native program takes: those inside the packed leaves."""
    return plain_weights([array for leaf in leaves for array in jax.tree.leaves(leaf)])


def _export(
    apply: Callable[..., Any],
    leaves: list[Any],
    treedef: Any,
    inputs: tuple[Any, ...],
    axes: Axes | None,
    constraints: Sequence[str],
) -> Program:
    """Export a function of the tree of these leaves and the inputs."""
    impls = [jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in leaves]
    from lepton_jax.artifact.slices import with_slices  # not needed to read a file

    restored = Restored(inputs)

    def program(flat: list[Any], *inputs: Any) -> Any:
        flat = [leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl) for leaf, impl in zip(flat, impls)]
        return plain(apply(jax.tree.unflatten(treedef, flat), *restored(inputs)))

    arguments = [_struct(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in leaves]
    static = jax.tree.map(_struct, inputs)
    lengths: dict[str, int] = {}
    if axes is None:
        shapes = [*guessed(static), static]
    else:
        free, lengths = named(static, axes, constraints)
        shapes = [free]
    problems: list[str] = []
    for some in (PLATFORMS, None):
        # Where not all platforms can lower it, those are kept that can alone.
        platforms = some or tuple(name for name in PLATFORMS if _lower(program, arguments, static, (name,), problems))
        for structs in shapes if platforms else ():
            free = any(not isinstance(n, int) for leaf in jax.tree.leaves(structs) for n in leaf.shape)
            function = with_slices(program) if free else program
            exported = _lower(function, arguments, plain(structs), platforms, problems)
            if exported is not None:
                symbolic = any(names_of(exported))
                if axes is None and len(shapes) > 1 and not symbolic:
                    _warn(problems[0])
                exact = not symbolic or _operations(function, arguments, plain(structs)) == _operations(
                    program, arguments, plain(static)
                )
                return Program(compact(exported, assertions=bool(constraints)), symbolic, lengths, exact)
    where = f" with {', '.join(lengths)} of any length" if lengths else ""
    remedy = ". Name fewer axes, or say what holds of them: constraints=('time <= 512',)" if lengths else ""
    raise ArtifactError(f"apply cannot be exported with `jax.export`{where}: {problems[-1]}{remedy}")


def _warn(problem: str) -> None:
    warnings.warn(
        "the file's program takes inputs of the examples' shapes only, since the model could not be traced for a batch of any "
        f"length ({problem[:300]}). Write it for any x.shape[0], or, if that is meant, save with axes={{}}.",
        FixedBatchWarning,
        stacklevel=6,
    )


def _operations(program: Callable[..., Any], weights: list[Any], inputs: Any) -> Counter[str]:
    """How many there are of every kind, of those that make arrays of floating numbers; calls are what they hold."""
    from lepton_jax.graph.primitives import PLAIN_CALLS  # not needed to read a file
    from lepton_jax.graph.trace import walk

    jaxpr = jax.make_jaxpr(program)(weights, *inputs)
    inner = (eqn for eqn in walk(jaxpr) if eqn.primitive not in PLAIN_CALLS)
    floats = (eqn for eqn in inner if any(aval.shape and jnp.issubdtype(aval.dtype, jnp.inexact) for aval in eqn.out_avals))
    return Counter(eqn.primitive for eqn in floats)


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
                remedy = wide(needed.dtype) or "the shapes are those of the file's `variables`"
                problems.append(f"{path}: needs {needed.str_short()}; got {got}; {remedy}")


def runner(exported: export.Exported, lowering: bool = False) -> Callable[..., Any]:
    """Return a program as a function ``(weights, *inputs)`` that may be mapped, and that says that it has no derivative.

    Args:
      exported: the program.
      lowering: do what XLA on CPU is slow at otherwise, see `lowered`.
    """
    call = lowered(exported) if lowering else exported.call

    @jax.custom_vjp
    def run(weights: list[Any], *inputs: Any) -> Any:
        # jax has no rule to map a program: it is run once for each, in a loop.
        return jax.custom_batching.sequential_vmap(call)(weights, *inputs)

    def forward(weights: list[Any], *inputs: Any) -> Any:
        raise ArtifactError(
            "a loaded program is a forward pass and has no derivative: differentiate the original function of `variables`."
        )

    run.defvjp(forward, forward)
    return run


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
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, ArtifactError):
        check()
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        check()
        raise ArtifactError(f"the program cannot be run: {type(error).__name__}: {one_line(error)}") from error
