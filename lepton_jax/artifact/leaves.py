"""Leaves to bytes and back: plain arrays, random keys, and coded packed leaves, which say it themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.coding import arrays
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.packed import is_coded
from lepton_jax.leaves.stored import (
    Spec,
    letters,
    parse_spec,
    put_array,
    put_values,
    remember,
    require,
    take_array,
    take_values,
)

__all__ = ["Spec", "decode", "encode", "is_key", "parse_spec"]


def is_key(leaf: Any) -> bool:
    """True for arrays of random keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def encode(leaf: Any, hints: Hints) -> tuple[Spec, bytes]:
    """Code one leaf.

    Args:
      leaf: an array, a number, a random key or a coded packed leaf.
      hints: what earlier leaves tell; learns from this one.

    Returns:
      (what it is, its bytes).

    Raises:
      ArtifactError: for anything else.
    """
    writer = Writer()
    if is_coded(leaf):
        letter, numbers = leaf.write(writer, hints)
        return Spec(letter, numbers, tuple(leaf.shape), leaf.output_dtype), bytes(writer.data)
    if is_key(leaf):
        put_array(writer, jax.random.key_data(leaf), hints)
        return Spec("k", (), tuple(leaf.shape), str(jax.random.key_impl(leaf))), bytes(writer.data)
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        raise ArtifactError(f"a leaf must be an array, a number or a packed leaf; got {type(leaf).__name__}")
    array = np.asarray(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))
    spec = Spec("", (), array.shape, array.dtype.name)
    arrays.dtype_of(spec.dtype)
    remember(hints, put_values(writer, array, hints) != 0, array.shape)
    return spec, bytes(writer.data)


def decode(reader: Reader, spec: Spec, limit: int, hints: Hints) -> Any:
    """Read one leaf back, of the same type, with `jax` arrays.

    Args:
      reader: at the leaf's first byte.
      spec: what it is.
      limit: how many bytes an inner array (codebook, scales) may have.
      hints: what earlier leaves tell; learns from this one.

    Raises:
      ArtifactError: if its bytes are not such a leaf.
    """
    if spec.kind == "":
        bits, array = take_values(reader, arrays.dtype_of(spec.dtype), spec.shape, hints, "values")
        remember(hints, bits != 0, spec.shape)
        return array
    if spec.kind == "k":
        keys = jax.random.wrap_key_data(take_array(reader, limit, hints, "values"), impl=spec.dtype)
        require(keys.shape == spec.shape, f"keys of shape {keys.shape} where {spec.shape} are declared", reader)
        return keys
    return letters()[spec.kind].read(reader, spec, limit, hints)
