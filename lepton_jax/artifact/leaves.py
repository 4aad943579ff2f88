"""Leaves to bytes and back: plain arrays and the coded packed leaves, each with a short text that says what it is.

The text is ``[kind] shape [dtype]``, e.g. ``'784,300'`` (a float32 array), ``'10 bfloat16'``, ``'c3 784,300'`` (codes of 3 bits
into a codebook); the dtype is float32 unless said. The kind's letter is followed by the numbers the leaf's type needs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact import formats
from lepton_jax.coding import arrays, tensor_codes
from lepton_jax.coding.bit_packing import pack_codes, unpack_codes
from lepton_jax.coding.sparse_index import Hints, matrix_shape
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError
from lepton_jax.core.packed import Coded, Packed
from lepton_jax.formats import Format, Uniform, layout
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.sparse import Sparse

_KIND_NAMES = {"": "array", "c": "codebook", "q": "quantized", "g": "quantized", "s": "sparse", "k": "key"}
_DTYPES = ("float32", "float16", "bfloat16", "int32", "int8", "uint8", "float64")


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
    def dense_bytes(self) -> int:
        """Bytes of the dense array (of a key's words, 16 each)."""
        return self.size * (16 if self.kind == "k" else arrays.dtype_of(self.dtype).itemsize)

    @property
    def room(self) -> int:
        """Bytes that decoding may take room for: of the dense array, at least four an element and one for an empty axis."""
        return _room(self.shape, 16 if self.kind == "k" else arrays.dtype_of(self.dtype).itemsize)

    @property
    def kind_name(self) -> str:
        """The kind as a word."""
        return _KIND_NAMES[self.kind]

    @property
    def text(self) -> str:
        """The text that `parse_spec` reads."""
        parts = [self.kind + ",".join(map(str, self.numbers))] if self.kind else []
        parts.append(",".join(map(str, self.shape)) or "-")
        return " ".join(parts if self.dtype == "float32" else [*parts, self.dtype])


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
        expected = {"": 0, "c": 1, "q": 3, "g": len(spec.numbers), "s": 0, "k": 0}[kind]
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{text!r} does not describe a leaf; a newer version may read it") from error
    if len(parts) > 2 or len(spec.numbers) != expected or min(shape, default=0) < 0 or len(shape) > 32:
        raise ArtifactError(f"{text!r} does not describe a leaf")
    if kind in "cq" and kind and not 1 <= spec.numbers[0] <= 8:
        raise ArtifactError(f"{text!r} describes codes of {spec.numbers[0]} bits; 1 to 8 are allowed")
    if kind == "g":
        formats.format_of(spec.numbers)
    if kind != "k":
        arrays.dtype_of(dtype)
    return spec


def _room(shape: tuple[int, ...], itemsize: int) -> int:
    return math.prod(max(length, 1) for length in shape) * max(itemsize, 4)


def _require(holds: bool, found: str, reader: Reader) -> None:
    if not holds:
        raise ArtifactError(f"{found}, near offset {reader.offset}")


def _is_real(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer))


def _pack_codes(codes: np.ndarray, width: int) -> jax.Array:
    return jnp.asarray(pack_codes(codes, width))


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
    if isinstance(leaf, Coded):
        return _encode_coded(leaf, writer, hints), bytes(writer.data)
    if is_key(leaf):
        _put_array(writer, np.asarray(jax.random.key_data(leaf)), hints)
        return Spec("k", (), tuple(leaf.shape), str(jax.random.key_impl(leaf))), bytes(writer.data)
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        raise ArtifactError(f"a leaf must be an array, a number or a packed leaf; got {type(leaf).__name__}")
    array = np.asarray(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf))
    spec = Spec("", (), array.shape, array.dtype.name)
    arrays.dtype_of(spec.dtype)
    bits = arrays.patterns(array)
    writer.put(arrays.encode(bits, array.dtype, _pattern_shape(array.shape, array.dtype), hints).data)
    _remember(hints, bits != 0, array.shape)
    return spec, bytes(writer.data)


def _encode_coded(leaf: Coded, writer: Writer, hints: Hints) -> Spec:
    size = math.prod(leaf.shape)
    if isinstance(leaf, CodebookArray):
        codes, entries = unpack_codes(leaf.index, leaf.bits, size), np.asarray(leaf.codebook)
        _put_array(writer, entries, hints)
        alphabet = max(int(codes.max(initial=0)), min(entries.size, 2**leaf.bits - 1)) + 1
        writer.put(bytes([alphabet - 1]))
        writer.put(tensor_codes.encode(codes, alphabet, leaf.shape, hints).data)
        _remember(hints, codes != 0, leaf.shape)
        return Spec("c", (leaf.bits,), leaf.shape, leaf.output_dtype)
    if isinstance(leaf, QArray):
        return _encode_quantized(leaf, writer, hints)
    if isinstance(leaf, Sparse):
        mask = unpack_codes(leaf.mask, 1, size)
        writer.put(tensor_codes.encode(mask, 2, leaf.shape, hints).data)
        _put_array(writer, np.asarray(leaf.values), hints)
        _remember(hints, mask != 0, leaf.shape)
        return Spec("s", (), leaf.shape, leaf.output_dtype)
    raise ArtifactError(f"packed leaves of type {type(leaf).__name__} cannot be stored by this version; unpack them first")


def _encode_quantized(leaf: QArray, writer: Writer, hints: Hints) -> Spec:
    codes, fmt = unpack_codes(leaf.words, leaf.format.bits, math.prod(leaf.shape)), leaf.format
    zero_point, plain = np.asarray(leaf.zero_point), formats.is_plain(leaf)
    _put_array(writer, np.asarray(leaf.scale), hints)
    if not plain:
        writer.put(bytes([not _is_no_zero_point(zero_point, len(leaf.shape))]))
    if plain or not _is_no_zero_point(zero_point, len(leaf.shape)):
        _put_array(writer, zero_point, hints)
    if fmt.bits > 8:
        writer.put(arrays.encode(codes, codes.dtype, leaf.shape, hints).data)
    else:
        writer.put(tensor_codes.encode(codes, 2**fmt.bits, leaf.shape, hints).data)
    _remember(hints, codes != fmt.quiet_code, leaf.shape)
    if not plain:
        return Spec("g", formats.numbers_of(fmt), leaf.shape, leaf.output_dtype)
    axis = formats.NO_AXIS if fmt.channel_axis is None else fmt.channel_axis
    return Spec("q", (fmt.bits, int(fmt.symmetric), axis), leaf.shape, leaf.output_dtype)


def _is_no_zero_point(zero_point: np.ndarray, ndim: int) -> bool:
    return zero_point.shape == (1,) * ndim and zero_point.dtype == np.int32 and not zero_point.any()


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
        dtype = arrays.dtype_of(spec.dtype)
        bits = arrays.decode(reader, dtype, _pattern_shape(spec.shape, dtype), hints, "values")
        _remember(hints, bits != 0, spec.shape)
        return _as_array(bits, dtype, spec.shape)
    if spec.kind == "k":
        keys = jax.random.wrap_key_data(_take_array(reader, limit, hints, "values"), impl=spec.dtype)
        _require(keys.shape == spec.shape, f"keys of shape {keys.shape} where {spec.shape} are declared", reader)
        return keys
    if spec.kind == "c":
        codebook = _take_array(reader, limit, hints, "codebook")
        alphabet = reader.take(1)[0] + 1
        plain = codebook.ndim == 1 and codebook.size < 256 and _is_real(codebook) and alphabet <= 2 ** spec.numbers[0]
        _require(plain, f"a table of shape {codebook.shape}, {codebook.dtype}, for {alphabet} codes", reader)
        codes = tensor_codes.decode(reader, alphabet, spec.shape, hints)
        _remember(hints, codes != 0, spec.shape)
        return CodebookArray(_pack_codes(codes, spec.numbers[0]), codebook, spec.numbers[0], spec.shape, spec.dtype)
    if spec.kind in ("q", "g"):
        return _decode_quantized(reader, spec, limit, hints)
    mask = tensor_codes.decode(reader, 2, spec.shape, hints, "positions")
    values = _take_array(reader, limit, hints, "values")
    _require(values.shape == (int(mask.sum()),), f"{values.shape} values for {int(mask.sum())} positions", reader)
    _remember(hints, mask != 0, spec.shape)
    return Sparse(values, _pack_codes(mask, 1), spec.shape, spec.dtype)


def _decode_quantized(reader: Reader, spec: Spec, limit: int, hints: Hints) -> QArray:
    fmt, ndim, scale = _format(spec), len(spec.shape), _take_array(reader, limit, hints, "scales")
    given = spec.kind == "q" or reader.take(1)[0]
    zero_point = _take_array(reader, limit, hints, "scales") if given else jnp.zeros((1,) * ndim, jnp.int32)
    axis, real = fmt.channel_axis, _is_real(scale) and _is_real(zero_point)
    if spec.kind == "q":
        along = scale.ndim in (0, ndim) and all(length in (1, of) for length, of in zip(scale.shape, spec.shape))
        fits = along and scale.shape == zero_point.shape and (axis is None or -ndim <= axis < ndim)
    else:
        expected = None if layout.problem(spec.shape, fmt) else fmt.scale_shape(spec.shape)
        fits = scale.shape == expected and zero_point.shape in (expected, (1,) * ndim) and scale.dtype == fmt.scale_dtype
    _require(real and fits, f"scales of shapes {scale.shape} and {zero_point.shape} for {fmt} of {spec.shape}", reader)
    if fmt.bits > 8:
        codes = arrays.decode(reader, np.dtype(np.uint16), spec.shape, hints, "values")
    else:
        codes = tensor_codes.decode(reader, 2**fmt.bits, spec.shape, hints)
    _remember(hints, codes != fmt.quiet_code, spec.shape)
    return QArray(_pack_codes(codes, fmt.bits), scale, zero_point, fmt, spec.shape, spec.dtype)


def _format(spec: Spec) -> Format:
    if spec.kind == "g":
        return formats.format_of(spec.numbers)
    width, symmetric, axis = spec.numbers
    return Uniform(bits=width, symmetric=bool(symmetric), channel_axis=None if axis == formats.NO_AXIS else axis)


_unpack_quantized = jax.jit(QArray.unpack)


def dense(leaf: Any) -> Any:
    """Unpack one leaf as its own `unpack` does; where that only selects, in numpy, which compiles nothing.

    What is quantized is unpacked by one compiled program; factors are unpacked before their product, so that it has the same
    bits whatever they are stored in.
    """
    if isinstance(leaf, QArray):
        return _unpack_quantized(leaf)
    if isinstance(leaf, LowRank):
        return dataclasses.replace(leaf, u=dense(leaf.u), v=dense(leaf.v)).unpack()
    if isinstance(leaf, CodebookArray) and leaf.codebook.dtype == leaf.dtype:
        table = np.concatenate([np.zeros(1, leaf.dtype), np.asarray(leaf.codebook)])
        codes = unpack_codes(leaf.index, leaf.bits, leaf.size)
        # An index beyond the table reads its last entry, as in jax.
        return jnp.asarray(table[np.minimum(codes, table.size - 1)].reshape(leaf.shape))
    if isinstance(leaf, Sparse) and leaf.values.dtype == leaf.dtype:
        out = np.zeros(leaf.size, leaf.dtype)
        out[unpack_codes(leaf.mask, 1, leaf.size) != 0] = np.asarray(leaf.values)
        return jnp.asarray(out.reshape(leaf.shape))
    return leaf.unpack() if isinstance(leaf, Packed) else leaf


def _remember(hints: Hints, nonzero: np.ndarray, shape: tuple[int, ...]) -> None:
    if shape and nonzero.size == math.prod(shape):
        hints.remember(np.asarray(nonzero.reshape(matrix_shape(shape)).any(axis=0)))


def _pattern_shape(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    return (*shape, 2) if dtype.itemsize == 16 else shape


def _as_array(bits: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    if dtype == np.bool_ and bits.max(initial=0) > 1:
        raise ArtifactError("a flag is neither 0 nor 1")
    array = np.ascontiguousarray(bits).view(np.uint8).view(dtype).reshape(shape) if bits.size else np.zeros(shape, dtype)
    # Without 64-bit mode jax would narrow these; numpy keeps them.
    return array if dtype.itemsize == 8 and not jax.config.read("jax_enable_x64") else jnp.asarray(array)


def _put_array(writer: Writer, array: np.ndarray, hints: Hints) -> None:
    """Append an array whose shape and dtype the leaf's text does not give."""
    name = array.dtype.name
    if name in _DTYPES:
        writer.put(bytes([_DTYPES.index(name)]))
    else:
        writer.put(b"\xff")
        writer.block(name.encode())
    writer.number(array.ndim)
    for length in array.shape:
        writer.number(length)
    writer.put(
        arrays.encode(arrays.patterns(array), array.dtype, _pattern_shape(array.shape, array.dtype), hints, sparse=False).data
    )


def _take_array(reader: Reader, limit: int, hints: Hints, category: str) -> Any:
    code = reader.take(1)[0]
    if code != 255 and code >= len(_DTYPES):
        raise ArtifactError(f"unknown dtype {code} at offset {reader.offset - 1}")
    name = reader.block().decode("ascii", "replace") if code == 255 else _DTYPES[code]
    dtype, ndim = arrays.dtype_of(name), reader.number()
    shape = tuple(reader.number() for _ in range(min(ndim, 33)))
    if ndim > 32 or _room(shape, dtype.itemsize) > limit:
        raise ArtifactError(
            f"an array of shape {shape} declared near offset {reader.offset}; at most {limit} bytes are allowed"
        )
    return _as_array(arrays.decode(reader, dtype, _pattern_shape(shape, dtype), hints, category), dtype, shape)
