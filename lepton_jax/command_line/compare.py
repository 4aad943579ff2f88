"""Compare named arrays, element by element."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lepton_jax.core.foreign_text import shown
from lepton_jax.core.tables import table
from lepton_jax.interchange import load_variables
from lepton_jax.interchange.names import to_named

_ABSENT = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How a tensor of one file differs from that of the same name in another.

    Args:
      name: of the tensor.
      shapes, dtypes: in A and in B; "-" where it is absent.
      bytes: of the dense tensor, in A and in B.
      size: elements in A, or in B where A lacks it.
      changed: elements whose bits differ (whose values do, between dtypes); all, where shapes differ.
      largest: the largest magnitude of a difference; inf where it is none (NaN, infinities, other shapes).
    """

    name: str
    shapes: tuple[str, str]
    dtypes: tuple[str, str]
    bytes: tuple[int, int]
    size: int
    changed: int
    largest: float

    @property
    def same(self) -> bool:
        """Whether both files have the tensor bit for bit."""
        return self.shapes[0] == self.shapes[1] and self.dtypes[0] == self.dtypes[1] and not self.changed

    def within(self, tolerance: float) -> bool:
        """Whether both have it in one shape and no element differs by more."""
        return self.shapes[0] == self.shapes[1] and self.largest <= tolerance


def named(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of any file of variables, by name."""
    return to_named(load_variables(path))[0]


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[Difference]:
    """Compare all tensors of two files, those that only one has included; shows progress.

    Example:
      >>> [one] = compare({"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 2.5])})
      >>> one.changed, one.largest, one.within(0.5), one.same
      (1, 0.5, True, False)
    """
    names = list(dict.fromkeys((*a, *b)))
    return [_difference(name, a.get(name), b.get(name)) for name in tqdm(names, desc="compare", unit="tensor", disable=None)]


def comparison(differences: Sequence[Difference]) -> str:
    """Return a table of differences."""
    head = ("tensor", "shape", "dtype", "bytes A", "bytes B", "changed", "largest difference")
    rows = [
        (
            shown(one.name),
            _both(one.shapes),
            _both(one.dtypes),
            *one.bytes,
            f"{one.changed} of {one.size}",
            f"{one.largest:.6g}",
        )
        for one in differences
    ]
    return table([head, *rows], left=range(3))


def _both(texts: tuple[str, str]) -> str:
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} | {texts[1]}"


def _difference(name: str, a: np.ndarray | None, b: np.ndarray | None) -> Difference:
    there = [x for x in (a, b) if x is not None]
    size, largest = there[0].size, float("inf")
    changed = size
    if a is not None and b is not None and a.shape == b.shape:
        differ = _bits(a) != _bits(b) if a.dtype == b.dtype else _wide(a) != _wide(b)
        changed = int(np.count_nonzero(differ.reshape(size, -1).any(axis=1))) if size else 0
        largest = _largest(a, b) if changed else 0.0
    (shape, dtype, bytes_), (other_shape, other_dtype, other_bytes) = map(_said, (a, b))
    return Difference(
        name=name,
        shapes=(shape, other_shape),
        dtypes=(dtype, other_dtype),
        bytes=(bytes_, other_bytes),
        size=size,
        changed=changed,
        largest=largest,
    )


def _said(array: np.ndarray | None) -> tuple[str, str, int]:
    """Shape, dtype and bytes."""
    if array is None:
        return _ABSENT, _ABSENT, 0
    return "x".join(map(str, array.shape)) or "scalar", array.dtype.name, array.nbytes


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, array.dtype.itemsize)


def _wide(array: np.ndarray) -> Any:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        apart = np.abs(_wide(a) - _wide(b))
    apart = np.where((_wide(a) == _wide(b)) | (np.isnan(_wide(a)) & np.isnan(_wide(b))), 0, apart)
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0))
