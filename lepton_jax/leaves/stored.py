"""What the stored forms of leaves share: the short text that says what a leaf is, and the arrays inside of one.

The text is ``[kind] shape [dtype]``, e.g. ``'784,300'`` (a float32 array), ``'10 bfloat16'``, ``'c3 784,300'`` (codes of 3 bits
into a codebook); the dtype is float32 unless said. The kind's letter is followed by the numbers the leaf's type needs. The
letters are those of `Coded.letters`, beside '' (an array) and k (random keys).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.coding import arrays
from lepton_jax.coding.bit_packing import pack_bits
from lepton_jax.coding.sparse_index import Hints, matrix_shape
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.packed import Coded, kinds

PLAIN = {"": "array", "k": "key"}
_DTYPES = ("float32", "float16", "bfloat16", "int32", "int8", "uint8", "float64")
_MAX_AXES = 32


class Spec(NamedTuple):
    """What a leaf is: the parsed text."""

    kind: str
    numbers: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the dense array (of a key's words 16)."""
        return 16 if self.kind == "k" else arrays.dtype_of(self.dtype).itemsize

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense array."""
        return self.size * self.itemsize

    @property
    def room(self) -> int:
        """Bytes that decoding may take room for: of the dense array, at least four an element and one for an empty axis."""
        return _room(self.shape, self.itemsize)

    @property
    def kind_name(self) -> str:
        """The kind as a word."""
        return PLAIN.get(self.kind) or letters()[self.kind].letters[self.kind]

    @property
    def text(self) -> str:
        """The text that `parse_spec` reads."""
        parts = [self.kind + ",".join(map(str, self.numbers))] if self.kind else []
        parts.append(",".join(map(str, self.shape)) or "-")
        return " ".join(parts if self.dtype == "float32" else [*parts, self.dtype])


def letters() -> dict[str, type[Coded]]:
    """Return the kind of coded leaf that each letter stands for."""
    return {letter: kind for kind in kinds(Coded) for letter in vars(kind).get("letters", ())}


def parse_spec(text: str) -> Spec:
    """Read a leaf's text.

    Example:
      >>> parse_spec("c3 784,300")
      Spec(kind='c', numbers=(3,), shape=(784, 300), dtype='float32')

    Raises:
      ArtifactError: if it says nothing known.
    """
    kind, numbers, parts = "", "", text.split(" ")
    if parts[0][:1].isalpha():
        kind, numbers = parts[0][0], parts[0][1:]
        parts = parts[1:]
    try:
        shape_text, dtype = (*parts, "float32")[:2]
        shape = () if shape_text == "-" else tuple(int(n) for n in shape_text.split(","))
        spec = Spec(kind, tuple(int(n) for n in numbers.split(",") if n), shape, dtype)
        known = Coded if kind in PLAIN else letters()[kind]
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{shown(text)!r} does not describe a leaf; a newer version may read it") from error
    if len(parts) > 2 or min(shape, default=0) < 0 or len(shape) > _MAX_AXES:
        raise ArtifactError(f"{shown(text)!r} does not describe a leaf")
    try:
        known.check_numbers(kind, spec.numbers)
    except ArtifactError as error:
        raise ArtifactError(f"{shown(text)!r} does not describe a leaf: {error}") from error
    if kind != "k":
        arrays.dtype_of(dtype)
    return spec


def check_code_bits(numbers: tuple[int, ...], count: int) -> None:
    """Raise an `ArtifactError` unless a text has so many numbers, of which the first is the bits of a code."""
    if len(numbers) != count:
        raise ArtifactError(f"{count} numbers are needed, the first the bits of a code; got {numbers}")
    if not 1 <= numbers[0] <= 8:
        raise ArtifactError(f"codes of {numbers[0]} bits; 1 to 8 are allowed")


def require(holds: bool, found: str, reader: Reader) -> None:
    """Raise an `ArtifactError` that says what was found, and where, unless a condition holds."""
    if not holds:
        raise ArtifactError(f"{found}, near offset {reader.offset}")


def is_real(array: Any) -> bool:
    """True for arrays of floats or integers."""
    return bool(jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer))


def packed_codes(codes: np.ndarray, bits: int) -> jax.Array:
    """Return codes as leaves hold them."""
    return jnp.asarray(pack_bits(codes, bits))


def remember(hints: Hints, nonzero: np.ndarray, shape: tuple[int, ...]) -> None:
    """Tell later leaves which columns of this one are not empty."""
    if shape and nonzero.size == math.prod(shape):
        hints.remember(np.asarray(nonzero.reshape(matrix_shape(shape)).any(axis=0)))


def put_array(writer: Writer, values: Any, hints: Hints) -> None:
    """Append an array whose shape and dtype the leaf's text does not give."""
    array = np.asarray(values)
    name = array.dtype.name
    if name in _DTYPES:
        writer.put(bytes([_DTYPES.index(name)]))
    else:
        writer.put(b"\xff")
        writer.block(name.encode())
    writer.number(array.ndim)
    for length in array.shape:
        writer.number(length)
    put_values(writer, array, hints, sparse=False)


def take_array(reader: Reader, limit: int, hints: Hints, category: str) -> Any:
    """Read what `put_array` wrote.

    Raises:
      ArtifactError: if it is no such array, or would have more than `limit` bytes.
    """
    code = reader.take(1)[0]
    if code != 255 and code >= len(_DTYPES):
        raise ArtifactError(f"unknown dtype {code} at offset {reader.offset - 1}")
    name = reader.block().decode("ascii", "replace") if code == 255 else _DTYPES[code]
    dtype, ndim = arrays.dtype_of(name), reader.number()
    shape = tuple(reader.number() for _ in range(min(ndim, _MAX_AXES + 1)))
    if ndim > _MAX_AXES or _room(shape, dtype.itemsize) > limit:
        raise ArtifactError(
            f"an array of shape {shape} declared near offset {reader.offset}; at most {limit} bytes are allowed"
        )
    reader.memory(_room(shape, dtype.itemsize), f"an array of shape {shape}")
    return take_values(reader, dtype, shape, hints, category)[1]


def put_values(writer: Writer, array: np.ndarray, hints: Hints, sparse: bool = True) -> np.ndarray:
    """Append the elements of an array, zeros apart if that may be; return their bits."""
    bits = arrays.patterns(array)
    writer.put(arrays.encode(bits, array.dtype, _pattern_shape(array.shape, array.dtype), hints, sparse).data)
    return bits


def take_values(reader: Reader, dtype: np.dtype, shape: tuple[int, ...], hints: Hints, category: str) -> tuple[np.ndarray, Any]:
    """Read what `put_values` wrote; return bits and array."""
    bits = arrays.decode(reader, dtype, _pattern_shape(shape, dtype), hints, category)
    if dtype == np.bool_ and bits.max(initial=0) > 1:
        raise ArtifactError("a flag is neither 0 nor 1")
    array = np.ascontiguousarray(bits).view(np.uint8).view(dtype).reshape(shape) if bits.size else np.zeros(shape, dtype)
    # Without 64-bit mode jax would narrow these; numpy keeps them.
    kept = dtype.itemsize == 8 and not jax.config.read("jax_enable_x64")
    return bits, array if kept else jnp.asarray(array)


def _room(shape: tuple[int, ...], itemsize: int) -> int:
    return math.prod(max(length, 1) for length in shape) * max(itemsize, 4)


def _pattern_shape(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    return (*shape, 2) if dtype.itemsize == 16 else shape
