"""Inputs of the shapes that a file asks for; where it leaves lengths open, such that its graph can be evaluated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.limits import most_bytes
from lepton_jax.interchange.onnx.function import Imported
from lepton_jax.interchange.onnx.parts import Port

_BATCHES = (3, 2, 1, 5)
_LENGTHS = (64, 32, 48, 128, 224, 256, 512, 16, 320, 640, 576, 8, 1024, 1)
_MOST_TRIES = 48
_LARGEST = 1 << 28


def example_of(function: Imported, variables: Any) -> tuple[Any, ...]:
    """Return inputs that a function takes.

    Args:
      function: of the graph.
      variables: its own.

    Raises:
      ArtifactError: if lengths that the file leaves open were not found, or the graph cannot be evaluated at all.
    """
    first: Exception | None = None
    for shapes in _shapes(function.graph.inputs):
        try:
            structs = [jax.ShapeDtypeStruct(shape, _dtype(port)) for shape, port in zip(shapes, function.graph.inputs)]
            _check_size(structs, function)
            jax.eval_shape(function, variables, *structs)
            return tuple(_filled(struct, port) for struct, port in zip(structs, function.graph.inputs))
        except ArtifactError as error:
            if getattr(error, "too_much", False):
                raise
            first = first or error
    assert first is not None
    raise first


def _check_size(structs: Sequence[jax.ShapeDtypeStruct], function: Imported) -> None:
    """Raise if inputs of the shapes that the file asks for take more than is made without being asked to."""
    size = sum(math.prod(one.shape) * one.dtype.itemsize for one in structs)
    if size > max(_LARGEST, most_bytes(function.stored)):
        said = ", ".join(f"{port.name!r} {one.shape}" for port, one in zip(function.graph.inputs, structs))
        raise ArtifactError(f"inputs of {size} bytes are asked for ({said}); give them: from_onnx(path, x)")


def _dtype(port: Port) -> Any:
    if port.dtype is None:
        raise ArtifactError(f"the input {port.name!r} is no array of numbers")
    return jax.dtypes.canonicalize_dtype(port.dtype)


def _shapes(ports: Sequence[Port]) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of all inputs, likely ones first. One name is one length; so is the first axis of all, where it is open."""
    for keys in dict.fromkeys((_keys(ports, True), _keys(ports, False))):
        yield from _of_keys(keys)


def _keys(ports: Sequence[Port], states: bool) -> tuple[tuple[Any, ...], ...]:
    """For each axis its length, or what all axes of the same open length have in common.

    Args:
      ports: the inputs.
      states: whether (2, ?, 128) has the batch where it is open, as states of recurrent layers do.
    """
    found = []
    for number, port in enumerate(ports):
        dims = port.dims if port.dims is not None else ()
        first = next((axis for axis, n in enumerate(dims) if n is None), 0) if states and number else 0
        found.append(tuple(n if n is not None else "batch" if axis == first else (number, axis) for axis, n in enumerate(dims)))
    return tuple(found)


def _of_keys(keys: tuple[tuple[Any, ...], ...]) -> Iterator[list[tuple[int, ...]]]:
    batches = {key for of in keys for key in of[:1] if not isinstance(key, int)} | {"batch"}
    open_ = list(dict.fromkeys(key for of in keys for key in of if not isinstance(key, int)))
    fixed = {key for of in keys for key in of if isinstance(key, int)}
    choices = [_likely(_BATCHES if key in batches else _LENGTHS, fixed) for key in open_]
    for found in dict.fromkeys(itertools.islice(_choices([len(one) for one in choices]), _MOST_TRIES)):
        lengths = {key: choices[i][place] for i, (key, place) in enumerate(zip(open_, found))}
        yield [tuple(lengths.get(key, key) for key in of) for of in keys]


def _choices(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Equal choices first, since images are square; then all others."""
    for place in range(max(counts, default=1)):
        yield tuple(min(place, count - 1) for count in counts)
    yield from itertools.product(*map(range, counts))


def _likely(lengths: Sequence[int], fixed: set[int]) -> list[int]:
    """Those that no other axis has go first: equal lengths are taken for one and the same."""
    return sorted(lengths, key=lambda n: n in fixed)


def _filled(struct: jax.ShapeDtypeStruct, port: Port) -> Any:
    if jnp.issubdtype(struct.dtype, jnp.floating):
        return jax.random.normal(jax.random.key(0), struct.shape, jnp.float32).astype(struct.dtype)
    return jnp.zeros(struct.shape, struct.dtype)
