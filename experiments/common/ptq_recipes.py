"""How a model's weights are quantized without training: the rows of the post-training studies."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.common.config import Checked
from lepton_jax.core.typing import PyTree, Select
from lepton_jax.graph.trace import Apply
from lepton_jax.quantization import (
    AdaRound,
    Calibration,
    Format,
    Gptq,
    Nearest,
    awq_scale,
    compensate_errors,
    correct_biases,
    equalize,
    quantize_layers,
    smooth_quant,
)

CLIPPED = (3.5 / 3, 7.5 / 7, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Multiples of the range of the weights that are tried: at 3 and 4 bits, the first and the second make the largest exact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """Steps, in the order in which they are taken; all that are off leave rounding to nearest."""

    name: str
    """Of the row."""
    equalize: bool = False
    """Cross-layer equalisation before."""
    smooth: bool = False
    """SmoothQuant before."""
    awq: bool = False
    """AWQ's scales before."""
    method: Nearest | Gptq | AdaRound = dataclasses.field(default_factory=Nearest)
    """What chooses the levels."""
    calibration: Calibration | None = None
    """Of the weights' ranges."""
    factors: tuple[float, ...] | None = None
    """Multiples of the range to try by the layer's output error; None: both ends of symmetric integers; none: one range."""
    sequential: bool = True
    """Each layer sees what the quantized layers before it give, and aims at the float model's outputs."""
    centred: bool = False
    """Leave the mean of the outputs to the biases."""
    correct: bool = False
    """Bias correction afterwards."""
    rank: int = 0
    """Of the low-rank correction afterwards; 0: none."""

    def problems(self) -> Iterator[str]:
        yield from self.at_least(0, "rank")
        if self.centred and not self.correct:
            yield "centred: leaves the mean to bias correction, so `correct` must be on"

    @property
    def label(self) -> str:
        """Names files."""
        return self.name.replace(" ", "_")

    def quantize(self, apply: Apply, variables: PyTree, batches: Sequence[Any], fmt: Format, select: Select) -> PyTree:
        """Return the variables with packed leaves in place of the selected weights.

        Args:
          apply: in evaluation mode; with batch norms folded, for `equalize`.
          variables: arrays.
          batches: calibration batches.
          fmt: of the weights.
          select: which.
        """
        if self.equalize:
            variables, _ = equalize(apply, variables, batches[0], select=select)
        if self.smooth:
            variables, _ = smooth_quant(apply, variables, batches, select=select)
        if self.awq:
            variables, _ = awq_scale(apply, variables, batches, fmt, select=select)
        options: dict[str, Any] = {"select": select, "sequential": self.sequential, "centred": self.centred}
        options |= {"calibration": self.calibration, "factors": self.factors, "progress": False}
        quantized, _ = quantize_layers(apply, variables, batches, fmt, self.method, **options)
        if self.correct:
            quantized, _ = correct_biases(apply, variables, quantized, batches, select=select)
        if self.rank:
            quantized = compensate_errors(apply, variables, quantized, batches, self.rank, select=select)
        return quantized
