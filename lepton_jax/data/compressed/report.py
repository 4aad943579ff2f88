"""What a file of a data set holds: bytes, ratios, errors, speed."""

import dataclasses
import math

from lepton_jax.core.foreign_text import printable, shown
from lepton_jax.core.tables import table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayReport:
    """One array of a file.

    Args:
      name: of the array.
      dtype: of its numbers.
      shape: the examples along the first axis.
      raw_bytes: in memory.
      stored_bytes: in the file, its basis counted.
      mse: mean squared error of what is decoded, in the array's own unit squared; 0 if every bit is kept.
      psnr: ``10 log10(peak**2 / mse)`` in decibels; the peak is 255 for uint8, else the range of the values; inf without error.
      kept: fraction of the patches' variance that is kept, before integers are rounded; 1 if every bit is kept.
      chosen: how many blocks were coded in which way.

    Example:
      >>> array = ArrayReport(name="x", dtype="uint8", shape=(4, 2), raw_bytes=8, stored_bytes=4, mse=0.0, psnr=math.inf)
      >>> array.ratio
      2.0
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw_bytes: int
    stored_bytes: int
    mse: float
    psnr: float
    kept: float = 1.0
    chosen: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes in memory over bytes in the file."""
        return self.raw_bytes / max(self.stored_bytes, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A whole file; ``str(report)`` is an aligned table.

    Args:
      arrays: in the order of the file.
      examples: how many.
      head_bytes: of the head, the index and the checksums.
      examples_per_second: decoded, from the first on, in order; None if it was not measured.

    Example:
      >>> array = ArrayReport(name="x", dtype="uint8", shape=(4, 2), raw_bytes=8, stored_bytes=4, mse=0.0, psnr=math.inf)
      >>> report = Report(arrays=(array,), examples=4, head_bytes=4)
      >>> report.file_bytes, report.ratio
      (8, 1.0)
    """

    arrays: tuple[ArrayReport, ...]
    examples: int
    head_bytes: int
    examples_per_second: float | None = None

    @property
    def raw_bytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(array.raw_bytes for array in self.arrays)

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return self.head_bytes + sum(array.stored_bytes for array in self.arrays)

    @property
    def ratio(self) -> float:
        """Bytes in memory over all bytes of the file."""
        return self.raw_bytes / max(self.file_bytes, 1)

    def __str__(self) -> str:
        rows = [("array", "dtype", "shape", "raw bytes", "stored", "ratio", "MSE", "PSNR dB", "kept", "coded as (blocks)")]
        for a in self.arrays:
            coded = "; ".join(f"{name} ({count})" for name, count in sorted(a.chosen.items(), key=lambda one: -one[1])[:3])
            sizes = (str(a.raw_bytes), str(a.stored_bytes), f"{a.ratio:.2f}x")
            errors = (f"{a.mse:.4g}", "-" if math.isinf(a.psnr) else f"{a.psnr:.2f}", f"{a.kept:.5f}")
            rows.append((shown(a.name, 40), a.dtype, "x".join(map(str, a.shape)), *sizes, *errors, coded))
        rows.append(("head", "", "", "", str(self.head_bytes), "", "", "", "", ""))
        rows.append(("file", "", "", str(self.raw_bytes), str(self.file_bytes), f"{self.ratio:.2f}x", "", "", "", ""))
        lines = [table(rows, left=(0, 1, 2, len(rows[0]) - 1))]
        if self.examples_per_second is not None:
            lines.append(f"decoded in order: {self.examples_per_second:.0f} examples a second")
        return printable("\n".join(lines))
