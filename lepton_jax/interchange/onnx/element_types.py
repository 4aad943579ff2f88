"""The types of elements by their numbers in ONNX."""

import ml_dtypes
import numpy as np

NUMBERS: dict[int, np.dtype] = {
    number: np.dtype(kind)
    for number, kind in {
        1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
        10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 14: np.complex64, 15: np.complex128,
        16: ml_dtypes.bfloat16, 17: ml_dtypes.float8_e4m3fn, 18: ml_dtypes.float8_e4m3fnuz, 19: ml_dtypes.float8_e5m2,
        20: ml_dtypes.float8_e5m2fnuz, 21: ml_dtypes.uint4, 22: ml_dtypes.int4, 23: ml_dtypes.float4_e2m1fn,
        24: ml_dtypes.float8_e8m0fnu, 25: ml_dtypes.uint2, 26: ml_dtypes.int2,
    }.items()
}  # fmt: skip
"""All but text."""
TEXT = 8
NARROW: dict[np.dtype, int] = {
    np.dtype(kind): bits
    for kind, bits in (
        (ml_dtypes.uint4, 4), (ml_dtypes.int4, 4), (ml_dtypes.float4_e2m1fn, 4), (ml_dtypes.uint2, 2), (ml_dtypes.int2, 2),
    )
}  # fmt: skip
"""Those of which a byte holds several, and their bits."""


def dtype_of(number: int) -> np.dtype:
    """Return the type of elements of a number.

    Raises:
      ValueError: for text, and numbers that there are not.

    Example:
      >>> dtype_of(1)
      dtype('float32')
    """
    if number not in NUMBERS:
        said = "text" if number == TEXT else f"of type {number}"
        raise ValueError(f"elements are {said}, which no jax array holds")
    return NUMBERS[number]


def is_real(dtype: np.dtype) -> bool:
    """Whether elements are floating numbers that a model may be trained in.

    Example:
      >>> is_real(np.dtype("float16")), is_real(np.dtype("int8")), is_real(np.dtype(ml_dtypes.float8_e5m2))
      (True, False, False)
    """
    return dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
