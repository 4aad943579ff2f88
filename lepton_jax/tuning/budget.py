"""What a compressed model may cost and lose."""

from __future__ import annotations

import dataclasses
import math

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import collect

NAMES = ("bytes", "macs", "loss", "file_bytes", "latency")
_UNITS = {"B": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


@checked_but("bytes", "file_bytes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits; those that are None do not bind.

    Args:
      bytes: of all tensors in the file; a number, or "50kB" (kB, MB, GB of 1000).
      file_bytes: of the whole file, its program and head too; likewise. Recipes are saved to see it.
      latency: seconds of processor time of one call on the first batch, by ONNX Runtime on one core. Recipes are run to see it;
        what is tried follows the layers' own times, where `measure` was given the engine.
      macs: multiply-accumulates of one call on the first batch.
      loss: predicted, in the unit of the table. With it alone the recipe of the fewest bytes is looked for.

    Raises:
      ValueError: for no limit, or one that is not above 0.

    Example:
      >>> Budget(bytes="50kB").bytes, Budget(loss=0.01)
      (50000, Budget(bytes=None, macs=None, loss=0.01, file_bytes=None, latency=None))
    """

    bytes: int | float | str | None = None
    macs: float | None = None
    loss: float | None = None
    file_bytes: int | float | str | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        with collect("Budget") as problems:
            for name in ("bytes", "file_bytes"):
                given = getattr(self, name)
                if (size := _size(given)) is None and given is not None:
                    problems.append(f"{name}: must be a number above 0, or such as '50kB' or '1.5MB'; got {given!r}")
                object.__setattr__(self, name, size)
            for name in ("macs", "loss", "latency"):
                value = getattr(self, name)
                if value is not None and not (value > 0 and math.isfinite(value)):
                    problems.append(f"{name}: must be a number above 0; got {value!r}")
            if not problems and not self.limits:
                problems.append("give at least one of bytes=, macs=, loss=, file_bytes=, latency=")

    @property
    def limits(self) -> dict[str, float]:
        """Those that bind, by name."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}


def _size(given: object) -> float | int | None:
    """A number of bytes; None for what is none."""
    value, unit = given, "B"
    if isinstance(given, str):
        text = given.strip()
        unit = next((name for name in sorted(_UNITS, key=len, reverse=True) if text.endswith(name)), "")
        try:
            value = float(text.removesuffix(unit))
        except ValueError:
            return None
        unit = unit or "B"
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (value > 0 and math.isfinite(value)):
        return None
    scaled = value * _UNITS[unit]
    return int(scaled) if scaled == int(scaled) else scaled
