"""What every calibration has."""

from typing import Any, Protocol

from lepton_jax.core.typing import Array
from lepton_jax.formats.base import Format

Range = tuple[Array, Array]
"""(low, high), float32."""


class Calibration(Protocol):
    """Finds the range of values that a format shall cover: at once, or over batches.

    A range has the axes of the array, of size 1 where they were reduced. Over batches,

        state = calibration.init(shape)                     # of a range
        state = calibration.observe(state, x, axes)         # for every batch; pure, under jit
        low, high = calibration.range(state, fmt)

    NaN counts as 0. A range that observed nothing is [0, 0].
    """

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format | None = None) -> Range:
        """Return the range of one array over `axes`, kept at size 1, for a number format."""

    def init(self, shape: tuple[int, ...]) -> Any:
        """Return the state before the first batch, for ranges of this shape."""

    def observe(self, state: Any, x: Array, axes: tuple[int, ...]) -> Any:
        """Return the state after one more batch, reduced over `axes`."""

    def range(self, state: Any, fmt: Format | None = None) -> Range:
        """Return the range of what was observed."""


def check_calibration(name: str, calibration: Any) -> None:
    """Raise unless a calibration, if there is one, is one.

    Example:
      >>> check_calibration("fake_quant", "mse")
      Traceback (most recent call last):
      ...
      TypeError: fake_quant: calibration must be a Calibration, e.g. Percentile(q=99.9); got 'mse'.
    """
    usable = callable(calibration) and hasattr(calibration, "observe") and not isinstance(calibration, type)
    if calibration is not None and not usable:
        raise TypeError(f"{name}: calibration must be a Calibration, e.g. Percentile(q=99.9); got {calibration!r}.")


def format_of(name: str, fmt: Format | None) -> Format:
    """Return the format, which a calibration by rounding errors needs.

    Raises:
      TypeError: if there is none.
    """
    if fmt is None:
        raise TypeError(f"{name}: ranges by rounding errors need the number format: give it as `fmt`.")
    return fmt
