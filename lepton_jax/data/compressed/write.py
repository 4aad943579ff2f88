"""`write_dataset`: arrays into one file."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lepton_jax.coding.arrays import dtype_of
from lepton_jax.coding.streams import Reader
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import ArtifactError, check_whole, collect
from lepton_jax.core.files import write_atomic
from lepton_jax.data.compressed import lossless, patch_pca
from lepton_jax.data.compressed.head import PREFIX, Column, Head, build, head_size, parse
from lepton_jax.data.compressed.lossless import Lossless
from lepton_jax.data.compressed.patch_pca import PatchPCA

_BLOCK_BYTES = 1 << 18


@checked_but("codec")
def write_dataset(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    codec: Lossless | PatchPCA = Lossless(),
    *,
    block: int | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> None:
    """Write the arrays of a data set as one compressed file, atomically.

    Args:
      path: the file; replaced in one step if it is there.
      arrays: by name, examples along the first axis; any dtype of plain numbers. What belongs together: labels too.
      codec: `Lossless`, or `PatchPCA` for the arrays ``[N, H, W, C]`` of real numbers, the others being kept bit for bit.
      block: examples coded together, of which all are decoded when one is read; None: as many as take 256 KiB. Fewer make
        random access faster, more make the file smaller.
      meta: about the set, JSON: names of classes, where it is from.
      progress: show a bar, if the error stream is a terminal.

    Raises:
      ValueError: if arrays have no or unlike first axes, or are not of plain numbers, or none is for `PatchPCA`; names each.
      ArtifactError: if the file cannot be written; one of that name is as it was.

    Example:
      >>> import tempfile
      >>> from lepton_jax.data.compressed import open_dataset
      >>> arrays = {"image": np.zeros((100, 8, 8, 1), np.uint8), "label": np.arange(100) % 10}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_dataset(f"{folder}/set.lepd", arrays)
      ...     with open_dataset(f"{folder}/set.lepd") as data:
      ...         print(len(data), data[42]["label"], data[42]["image"].shape, data.report().file_bytes < 600)
      100 2 (8, 8, 1) True
    """
    given = {name: np.asarray(array) for name, array in arrays.items()}
    _check(given, codec)
    # Native byte order, so that a file reads alike everywhere.
    given = {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in given.items()}
    count = len(next(iter(given.values())))
    largest = max(array.dtype.itemsize * math.prod(array.shape[1:]) for array in given.values())
    rows = max(1, _BLOCK_BYTES // max(largest, 1)) if block is None else block
    check_whole("write_dataset: block", rows, 1)
    slices = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
    pending = {name: _Pending(name, array, codec, slices) for name, array in given.items()}
    streams = []
    for part in tqdm(slices, desc="compress", unit="block", disable=None if progress else True):
        streams += [one.encode(part) for one in pending.values()]
    columns = tuple(one.column() for one in pending.values())
    shared = [b"" if one.basis is None else patch_pca.write_basis(one.basis) for one in pending.values()]
    data = build(Head(columns, count, rows, dict(meta or {}), 0), streams, shared)
    parse(data[: head_size(data[:PREFIX], len(data), os.fspath(path))], len(data), os.fspath(path))
    write_atomic(path, data)


def _check(arrays: Mapping[str, np.ndarray], codec: Lossless | PatchPCA) -> None:
    lengths = {array.shape[0] for array in arrays.values() if array.ndim}
    with collect("write_dataset: cannot write these arrays") as problems:
        if not isinstance(codec, (Lossless, PatchPCA)):
            problems.append(f"codec: must be a Lossless or a PatchPCA; got {codec!r}")
        elif isinstance(codec, PatchPCA) and not any(map(_has_patches, arrays.values())):
            problems.append("codec: PatchPCA is for real arrays [N, H, W, C], of which there is none; images[..., None] adds C")
        if not arrays:
            problems.append("arrays: give at least one")
        for name, array in arrays.items():
            if not array.ndim:
                problems.append(f"{name}: has no axis of examples")
            elif len(lengths) > 1:
                problems.append(f"{name}: has {array.shape[0]} examples; all arrays must have as many")
            try:
                dtype_of(array.dtype.name)
            except ArtifactError:
                problems.append(f"{name}: dtype {array.dtype} is not one of plain numbers; code text as integers")


def _has_patches(array: np.ndarray) -> bool:
    return array.ndim == 4 and array.size > 0 and array.dtype.kind in "iuf"


class _Pending:
    """An array on its way into the file.

    Args:
      name: of the array.
      array: examples first.
      codec: the writer's; `PatchPCA` for images only.
      slices: the blocks.
    """

    def __init__(self, name: str, array: np.ndarray, codec: Lossless | PatchPCA, slices: list[slice]) -> None:
        lossy = isinstance(codec, PatchPCA) and _has_patches(array)
        self.basis = patch_pca.fit(array, codec, slices, name) if lossy and isinstance(codec, PatchPCA) else None
        self._name, self._array = name, array
        self._codec = codec if isinstance(codec, Lossless) else Lossless()
        self._squares, self._chosen = 0.0, Counter[str]()

    def encode(self, part: slice) -> bytes:
        """Return the stream of a block."""
        block = self._array[part]
        if self.basis is None:
            coded = lossless.encode(block, self._codec)
            try:
                self._again(coded.data, block)
            except ArtifactError:  # too slow to decode
                coded = lossless.encode_plainly(block)
                self._again(coded.data, block)
            self._chosen[coded.chosen] += 1
            return coded.data
        data = patch_pca.encode(block, self.basis)
        self._chosen[f"{len(self.basis.components)} components"] += 1
        again = self._again(data, block)
        self._squares += float(np.square(again.astype(np.float64) - block.astype(np.float64)).sum())
        return data

    def _again(self, data: bytes, block: np.ndarray) -> np.ndarray:
        """Read a stream as it will be.

        Raises:
          ArtifactError: if it could not be.
        """
        column = Column(self._name, self._array.dtype, self._array.shape, self.basis, (), (), 0, {})
        try:
            return column.decode(Reader(data), len(block))
        except ArtifactError as error:
            raise ArtifactError(
                f"cannot write {self._name} in blocks of {len(block)}, give a smaller block: {error}"
            ) from error

    def column(self) -> Column:
        """Return its description, once all blocks are coded."""
        figures: dict[str, Any] = {"chosen": dict(self._chosen)}
        if self.basis is not None:
            mse, values = self._squares / self._array.size, self._array
            peak = 255.0 if values.dtype == np.uint8 else float(values.max()) - float(values.min())
            psnr = 10 * math.log10(peak**2 / mse) if mse and peak else None
            figures |= {"mse": mse, "psnr": psnr, "kept": self.basis.kept}
        return Column(self._name, self._array.dtype, self._array.shape, self.basis, (), (), 0, figures)
