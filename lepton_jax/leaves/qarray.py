"""An array in a number format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lepton_jax.coding import arrays, tensor_codes
from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import is_traced
from lepton_jax.core.packed import Coded, register_packed
from lepton_jax.core.typing import Array, Path
from lepton_jax.formats import Uniform, layout
from lepton_jax.formats.base import Format, rounded, storable
from lepton_jax.formats.numbers import NO_AXIS, format_of, numbers_of
from lepton_jax.formats.ranges import Calibration
from lepton_jax.leaves.figures import Figures, histogram, of_codes
from lepton_jax.leaves.form import Native, Operation
from lepton_jax.leaves.quantized import Quantized, layers_of, rows_of
from lepton_jax.leaves.rounding import calibrated, codes_of, program, values_of
from lepton_jax.leaves.stored import Spec, check_code_bits, is_real, packed_codes, put_array, remember, require, take_array


@register_packed("words", "scale", "zero_point")
class QArray(Coded):
    """An array in a number format; of integers, ``x = (qvalue - zero_point) * scale``.

    Args:
      words: the codes, packed to `bits` bits each; see `pack_bits`.
      scale: in the format's layout and `scale_dtype`; see `Format.scale_shape`.
      zero_point: integers of the scale's shape; where all are zero, one may stand for all.
      format: the number format.
      shape: the dense leaf's.
      output_dtype: the dense leaf's dtype.

    Example:
      >>> q = QArray.rounded(jnp.array([-1.5, 0.0, 3.0]), Uniform(bits=4))
      >>> q.qvalue.tolist(), q.words.size, q.unpack().shape
      ([-4, 0, 7], 2, (3,))
    """

    words: Array
    scale: Array
    zero_point: Array
    format: Format
    shape: tuple[int, ...]
    output_dtype: str

    # q: what version 1.1 of the file had, at most 8 bits, affine or in a narrow range, no groups; g: any format.
    letters: ClassVar[Mapping[str, str]] = {"q": "quantized", "g": "quantized"}

    @classmethod
    def from_qvalue(cls, qvalue: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> QArray:
        """Pack codes.

        Args:
          qvalue: as `Format.to_codes` gives them, in the dense shape.
          scale: in the format's layout; rounded to its `scale_dtype`.
          zero_point: integers, likewise; or of size 1 in every axis.
          fmt: the number format.
          dtype: the dense leaf's.

        Raises:
          ValueError: for scales of another layout, or that are zero or not finite.
        """
        expected, found = fmt.scale_shape(qvalue.shape), (jnp.shape(scale), jnp.shape(zero_point))
        if found[0] != expected or found[1] not in (expected, (1,) * qvalue.ndim):
            raise ValueError(
                f"QArray: scale and zero point must have the shape {expected}, which {fmt} gives an array of shape "
                f"{qvalue.shape}; got {found[0]} and {found[1]}. See `calibrated`, or Format.scale_shape."
            )
        scale = rounded(jnp.asarray(scale), fmt.scale_dtype)
        if fmt.has_zero:  # without one, an array of zeros has the scale 0
            check_scale(scale)
        return _packed(qvalue, scale, jnp.asarray(zero_point), fmt, dtype)

    @classmethod
    def rounded(cls, x: Array, fmt: Format, calibration: Calibration | None = None) -> QArray:
        """Calibrate, round and pack a floating array; see `quantize`."""
        scale, zero_point = calibrated(x, fmt, calibration)
        return _packed(codes_of(x, scale, zero_point, fmt), scale, zero_point, fmt, x.dtype)

    @property
    def qvalue(self) -> Array:
        """The codes in the dense shape: integers (int8, uint8, int16, uint16), floats of 8 bits, or places in a table."""
        return _unpacked(self.words, self.format, self.shape)

    @property
    def stored_as(self) -> str:
        groups = self.format.group_size
        return self.format.name if groups is None else f"{self.format.name}, groups of {groups}"

    def unpack(self) -> Array:
        return _dense(self)

    def masked(self, mask: Array) -> QArray:
        zero = self.format.zero_code(layout.expand(self.zero_point, self.shape, self.format))
        return _packed(jnp.where(mask, self.qvalue, zero), self.scale, self.zero_point, self.format, self.dtype)

    def retrained(self, array: Array) -> QArray:
        """Return the array rounded to its own range; where no level is at the ends, the largest keeps the level it has here."""
        fmt = self.format
        scale, zero_point = calibrated(array, fmt)
        if isinstance(fmt, Uniform) and fmt.steps != fmt.reach:
            wide = replace(fmt, scale_dtype="float32")
            (own, _), (largest, _) = (calibrated(x, wide) for x in (array, self.qvalue.astype(jnp.float32)))
            scale = storable(own / largest, fmt.scale_dtype, fmt.reach)
        return _packed(codes_of(array, scale, zero_point, fmt), scale, zero_point, fmt, array.dtype)

    def native(self, path: Path) -> Words:
        zero_point = () if self.format.symmetric else self.zero_point
        return Words(self.words, self.scale, zero_point, self.format, self.shape, self.output_dtype, path)

    def write(self, writer: Writer, hints: Hints) -> tuple[str, tuple[int, ...]]:
        codes, fmt, zero_point = _codes(self), self.format, np.asarray(self.zero_point)
        plain = isinstance(fmt, Uniform) and fmt.bits <= 8 and zero_point.shape == self.scale.shape
        channel: Any = -1 if fmt.channel_axis == "out" else fmt.channel_axis
        plain = plain and fmt == Uniform(fmt.bits, fmt.symmetric, fmt.channel_axis, narrow_range=fmt.symmetric)
        plain = plain and not isinstance(channel, tuple)
        none = zero_point.shape == (1,) * self.ndim and zero_point.dtype == np.int32 and not zero_point.any()
        put_array(writer, self.scale, hints)
        if not plain:
            writer.put(bytes([not none]))
        if plain or not none:
            put_array(writer, zero_point, hints)
        if fmt.bits > 8:
            writer.put(arrays.encode(codes, codes.dtype, self.shape, hints).data)
        else:
            writer.put(tensor_codes.encode(codes, 2**fmt.bits, self.shape, hints).data)
        remember(hints, codes != fmt.quiet_code, self.shape)
        if not plain:
            return "g", numbers_of(fmt)
        return "q", (fmt.bits, int(fmt.symmetric), NO_AXIS if channel is None else channel)

    @classmethod
    def check_numbers(cls, letter: str, numbers: tuple[int, ...]) -> None:
        if letter == "g":
            format_of(numbers)
        else:
            check_code_bits(numbers, 3)

    @classmethod
    def read(cls, reader: Reader, spec: Spec, limit: int, hints: Hints) -> QArray:
        if spec.kind == "g":
            fmt = format_of(spec.numbers)
        else:
            width, symmetric, channel = spec.numbers
            fmt = Uniform(width, bool(symmetric), None if channel == NO_AXIS else channel, narrow_range=bool(symmetric))
        ndim, scale = len(spec.shape), take_array(reader, limit, hints, "scales")
        given = spec.kind == "q" or reader.take(1)[0]
        zero_point = take_array(reader, limit, hints, "scales") if given else jnp.zeros((1,) * ndim, jnp.int32)
        if spec.kind == "q":
            along = scale.ndim in (0, ndim) and all(length in (1, of) for length, of in zip(scale.shape, spec.shape))
            axis: Any = fmt.channel_axis
            fits = along and scale.shape == zero_point.shape and (axis is None or -ndim <= axis < ndim)
        else:
            expected = None if layout.problem(spec.shape, fmt) else fmt.scale_shape(spec.shape)
            fits = scale.shape == expected and zero_point.shape in (expected, (1,) * ndim) and scale.dtype == fmt.scale_dtype
        fits = fits and is_real(scale) and is_real(zero_point)
        require(fits, f"scales of shapes {scale.shape} and {zero_point.shape} for {fmt} of {spec.shape}", reader)
        if fmt.bits > 8:
            codes = arrays.decode(reader, np.dtype(np.uint16), spec.shape, hints, "values")
        else:
            codes = tensor_codes.decode(reader, 2**fmt.bits, spec.shape, hints)
        remember(hints, codes != fmt.quiet_code, spec.shape)
        return cls(packed_codes(codes, fmt.bits), scale, zero_point, fmt, spec.shape, spec.dtype)

    def figures(self) -> Figures:
        kept, bits = np.asarray(self.unpack()).reshape(-1) != 0, self.format.bits
        extra = self.scale.nbytes + (0 if self.format.symmetric else self.zero_point.nbytes)
        counts = histogram(_codes(self), 2**bits)
        return of_codes(kept, int(kept.sum()), counts, self.shape, value_bits=bits, bits=bits, extra=extra)


@register_packed("words", "scale", "zero_point")
class Words(Native):
    """Codes as they are stored, several a byte; `layout` is the dense shape without stacked axes. See `Quantized`."""

    words: Array
    scale: Array
    zero_point: Any
    format: Format
    layout: tuple[int, ...]
    dtype: str
    path: Path

    kind = "QArray"

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.words.shape[:-1], *self.layout)

    def opened(self) -> Quantized:
        """The same, one element a code."""
        codes = _unpacked(self.words.reshape(-1), self.format, self.shape)
        return Quantized(codes, self.scale, self.zero_point, self.format, self.dtype, path=self.path)

    def dense(self) -> Array:
        return self.opened().dense()

    def moved(self, operation: Operation) -> Any:
        return self.opened().moved(operation)

    def layers(self, length: int) -> Words | Quantized:
        cut = self._by_bytes(lambda part: layers_of(part, length, self.format.group_size or 0))
        return self.opened().layers(length) if cut is None else cut

    def rows(self, index: Array) -> Array:
        cut = self._by_bytes(lambda part: rows_of(part, index, self.shape[0], self.format.group_size or 0))
        return self.opened().rows(index) if cut is None else cut.dense()

    def _by_bytes(self, change: Callable[[Array], Array]) -> Words | None:
        """Codes, scale and zero point by the first axis, changed; None where an index of it ends within a byte."""
        bits = math.prod(self.layout[1:]) * self.format.bits
        if bits % 8 or self.words.ndim != 1:
            return None
        words, zero_point = self.words.reshape(self.shape[0], bits // 8), self.zero_point
        zero_point = zero_point if isinstance(zero_point, tuple) else change(zero_point)
        return replace(self, words=change(words), scale=change(self.scale), zero_point=zero_point, layout=self.layout[1:])


def check_scale(scale: Array) -> None:
    """Raise unless every scale is finite and not zero. What is traced passes.

    Raises:
      ValueError: says how many are not.
    """
    if is_traced(scale) or not scale.size:
        return
    values = np.asarray(scale, np.float32)
    wrong = int(np.count_nonzero(~np.isfinite(values) | (values == 0)))
    if wrong:
        raise ValueError(
            f"every scale must be finite and not zero; {wrong} of {scale.size} are not (in {scale.dtype}, as they are stored). "
            "Calibrate on finite values, or give `scale_dtype` more range."
        )


def _codes(leaf: QArray) -> np.ndarray:
    return unpack_bits(np.asarray(leaf.words), leaf.format.bits, leaf.size)


def _packed(qvalue: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> QArray:
    return QArray(_words(qvalue, fmt), scale, zero_point, fmt, qvalue.shape, jnp.dtype(dtype).name)


@partial(program, static_argnames="fmt")
def _words(qvalue: Array, fmt: Format) -> Array:
    return pack_bits(fmt.to_bits(qvalue), fmt.bits)


@partial(program, static_argnames=("fmt", "shape"))
def _unpacked(words: Array, fmt: Format, shape: tuple[int, ...]) -> Array:
    return fmt.from_bits(unpack_bits(words, fmt.bits, math.prod(shape)).reshape(shape))


@program
def _dense(leaf: QArray) -> Array:
    return values_of(leaf.qvalue, leaf.scale, leaf.zero_point, leaf.format, leaf.dtype)
