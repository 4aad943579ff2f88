"""`open_dataset`: read examples by index; only the block that an example lies in is decoded."""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import operator
import os
import time
import zlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from tqdm.auto import tqdm

from lepton_jax.coding.streams import Reader
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError, check_whole
from lepton_jax.core.files import open_file
from lepton_jax.core.foreign_text import shown
from lepton_jax.core.limits import Allowance, most_bytes
from lepton_jax.data.compressed.head import PREFIX, Column, head_size, parse
from lepton_jax.data.compressed.report import ArrayReport, Report

_TIMED_BLOCKS = 16
# What a whole set may take at least; a block of it may take `most_bytes`.
_FREE_BYTES = 1 << 26


class CompressedDataset:
    """A data set in a file, read by index: a `grain.sources.RandomAccessDataSource`.

    It can be shared by threads and sent to other processes, which open the file anew. Made by `open_dataset`.

    Attributes:
      path: of the file.
      meta: what the writer said of the set.
      block: examples that are decoded together.
      element_spec: shape and dtype of an example's arrays, by name.

    Example:
      >>> import tempfile
      >>> from lepton_jax.data.compressed import write_dataset
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_dataset(f"{folder}/set.lepd", {"x": np.arange(10.0)}, block=4)
      ...     with open_dataset(f"{folder}/set.lepd") as data:
      ...         print(data[-1]["x"], data.take([7, 1])["x"].tolist(), data.arrays()["x"].sum())
      9.0 [7.0, 1.0] 45.0
    """

    def __init__(self, path: str | os.PathLike[str], cached_blocks: int = 1) -> None:
        check_whole("open_dataset: cached_blocks", cached_blocks, 1)
        self.path = os.path.abspath(os.fspath(path))
        self._cached_blocks = cached_blocks
        try:
            with open_file(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                begin = file.read(PREFIX)
                start = begin + file.read(head_size(begin, size, self.path) - len(begin))
                self._head = parse(start, size, self.path)
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ArtifactError(f"cannot read {self.path}: {error.strerror or error}") from error
        sizes = itertools.chain.from_iterable(zip(*(column.sizes for column in self._head.columns)))
        self._starts = [self._head.size, *(self._head.size + end for end in itertools.accumulate(sizes))]
        self._block = functools.lru_cache(maxsize=cached_blocks)(self._decode)

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self._head.meta)

    @property
    def block(self) -> int:
        return self._head.rows

    @property
    def element_spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return {column.name: (column.shape[1:], column.dtype) for column in self._head.columns}

    def __len__(self) -> int:
        return self._head.examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of one example; read-only.

        Raises:
          IndexError: if there is no such example.
          TypeError: for a slice; `take` reads many.
          ArtifactError: if its block is damaged; names the block.
        """
        number, row = divmod(self._place(index), self._head.rows)
        return {name: array[row] for name, array in self._block(number).items()}

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at `indices`, in that order, as arrays; every block is decoded once.

        Raises:
          IndexError, ArtifactError: as for one.
        """
        places = np.array([self._place(index) for index in indices], np.int64)
        out = {column.name: np.empty((len(places), *column.shape[1:]), column.dtype) for column in self._head.columns}
        numbers = places // self._head.rows
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            for name, array in self._block(number).items():
                out[name][here] = array[places[here] - number * self._head.rows]
        return out

    def arrays(self, *, max_bytes: int | None = None, progress: bool = True) -> dict[str, np.ndarray]:
        """Return all examples as arrays.

        Args:
          max_bytes: refuse a set that takes more; None: 64 MiB, or 2048 times the file's size if that is more.
          progress: show a bar, if the error stream is a terminal.

        Raises:
          ArtifactError: if a block is damaged, or the set is larger.
        """
        wanted = sum(column.raw_bytes for column in self._head.columns)
        limit = max(_FREE_BYTES, most_bytes(self._starts[-1])) if max_bytes is None else max_bytes
        if wanted > limit:
            raise ArtifactError(f"{self.path}: {wanted} bytes declared, more than {limit}; if you trust it, give max_bytes")
        out = {column.name: np.empty(column.shape, column.dtype) for column in self._head.columns}
        bar = tqdm(range(self._head.blocks), desc="decode", unit="block", disable=None if progress else True)
        for number in bar:
            for name, array in self._decode(number).items():
                out[name][number * self._head.rows : number * self._head.rows + len(array)] = array
        return out

    def report(self, *, speed: bool = False) -> Report:
        """Say what the file holds.

        Args:
          speed: decode the first blocks (up to sixteen) and time it.
        """
        seconds, blocks = None, min(self._head.blocks, _TIMED_BLOCKS)
        if speed and blocks:
            begun = time.perf_counter()
            for number in range(blocks):
                self._decode(number)
            seconds = time.perf_counter() - begun
        columns = self._head.columns
        entries = tuple(_entry(column) for column in columns)
        head = self._starts[-1] - sum(entry.stored_bytes for entry in entries)
        done = min(blocks * self._head.rows, len(self))
        return Report(
            arrays=entries,
            examples=len(self),
            head_bytes=head,
            examples_per_second=None if seconds is None else done / seconds,
        )

    def close(self) -> None:
        """Let go of the file."""
        self._block.cache_clear()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CompressedDataset({self.path!r}, {len(self)} examples of {', '.join(self.element_spec)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return CompressedDataset, (self.path, self._cached_blocks)

    def _place(self, index: int) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"{self.path}: example {place} of {len(self)}; give -{len(self)} to {len(self) - 1}.")
        return place % len(self)

    def _decode(self, number: int) -> dict[str, np.ndarray]:
        """Decode one block of every array; not to be written to, since it is kept."""
        first, out = number * len(self._head.columns), {}
        rows = min(self._head.rows, len(self) - number * self._head.rows)
        allowance = Allowance(self._starts[first + len(self._head.columns)] - self._starts[first])
        for at, column in enumerate(self._head.columns):
            where = f"{self.path}: block {number} of {shown(column.name)} at offset {self._starts[first + at]}"
            stream = self._file[self._starts[first + at] : self._starts[first + at + 1]]
            if zlib.crc32(stream) != column.checksums[number]:
                raise ArtifactError(f"{where}: damaged: wrong checksum")
            try:
                out[column.name] = column.decode(Reader(stream, self._starts[first + at], allowance=allowance), rows)
            except ArtifactError as error:
                raise ArtifactError(f"{where}: {error}") from error
            except (ValueError, IndexError, OverflowError, TypeError, MemoryError) as error:
                raise ArtifactError(f"{where}: damaged: {error}") from error
            out[column.name].flags.writeable = False
        return out


@checked
def open_dataset(path: str | os.PathLike[str], *, cached_blocks: int = 1) -> CompressedDataset:
    """Open a file that `write_dataset` wrote; it is mapped into memory, and nothing is decoded yet.

    Args:
      path: the file.
      cached_blocks: decoded blocks that are kept, the last used ones. Examples in random order need as many as there are, or
        `take`, or smaller blocks.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file.

    Example:
      >>> open_dataset("nowhere.lepd")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: cannot read ...nowhere.lepd: No such file or directory
    """
    return CompressedDataset(path, cached_blocks)


def _entry(column: Column) -> ArrayReport:
    figures, psnr = column.figures, column.figures.get("psnr")
    return ArrayReport(
        name=column.name,
        dtype=column.dtype.name,
        shape=column.shape,
        raw_bytes=column.raw_bytes,
        stored_bytes=column.shared + sum(column.sizes),
        mse=float(figures.get("mse", 0.0)),
        psnr=math.inf if psnr is None else float(psnr),
        kept=float(figures.get("kept", 1.0)),
        chosen=dict(figures.get("chosen", {})),
    )
