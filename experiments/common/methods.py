"""The transforms as configs: what they are, with times as fractions of the phase they are used in."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from lepton_jax import cast, fake_quant, low_rank, prune
from lepton_jax.core import schedules
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.transform import Transform
from lepton_jax.quantization import Codebook, Uniform, lsq

KERNELS = ("*/kernel",)
ALL = ("*/kernel", "*/bias")


def check_stretch(name: str, begin: float, end: float) -> None:
    """Raise unless ``0 <= begin < end <= 1``."""
    if not 0 <= begin < end <= 1:
        raise ValueError(f"{name}: 0 <= begin < end <= 1, fractions of the training; got begin={begin}, end={end}.")


def stretch(begin: float, end: float, steps: int) -> tuple[int, int]:
    """Return the first and the last step of a part of the training, given in fractions of it; at least one step long."""
    first = int(begin * steps)
    return first, max(int(end * steps), first + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """Gradual magnitude pruning (Zhu and Gupta 2017)."""

    sparsity: float
    """Fraction of the selected weights removed in the end."""
    begin: float = 0.0
    """Where the sparsity begins to rise, as a fraction of the phase."""
    end: float = 0.6
    """Where it has arrived, as a fraction of the phase."""
    scope: Literal["layer", "global"] = "global"
    """One threshold a layer, or one for all."""
    score_scale: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Glob pattern -> factor on the scores of the leaves that match."""
    select: tuple[str, ...] = ALL
    """Glob patterns of the leaves that are pruned."""
    gradient: Literal["masked", "straight_through"] = "masked"
    """Whether pruned weights may return."""
    interval: int = 20
    """Steps between two mask updates."""

    def __post_init__(self) -> None:
        check_fraction("Prune: sparsity", self.sparsity)
        check_stretch("Prune", self.begin, self.end)

    def build(self, steps: int) -> Transform:
        return prune(
            schedules.polynomial(self.sparsity, *stretch(self.begin, self.end, steps)),
            scope=self.scope,
            score_scale=self.score_scale,
            select=self.select,
            gradient=self.gradient,
            interval=self.interval,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedCodebook:
    """K-means codebooks whose values are trained (Han, Mao, Dally 2016)."""

    bits: int = 3
    """Each leaf has 2**bits values besides the zero."""
    select: tuple[str, ...] = KERNELS
    """Glob patterns of the leaves."""

    def __post_init__(self) -> None:
        Codebook(bits=self.bits)

    def build(self, steps: int) -> Transform:
        return fake_quant(Codebook(bits=self.bits), select=self.select)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedStepSize:
    """Uniform quantization whose step is trained; weights go on choosing their levels (Esser et al. 2020)."""

    bits: int = 3
    """2 to 8: ``2**bits`` levels, one more below zero than above."""
    select: tuple[str, ...] = KERNELS
    """Glob patterns of the leaves."""

    def __post_init__(self) -> None:
        Uniform(bits=self.bits)

    def build(self, steps: int) -> Transform:
        return lsq(self.bits, select=self.select)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeQuant:
    """Uniform quantization-aware training (Jacob et al. 2018)."""

    bits: int = 8
    """2 to 8."""
    symmetric: bool = True
    """Levels symmetric about zero, or a range of their own."""
    channel_axis: int | None = None
    """The axis whose every index has a scale of its own; None: one scale a leaf."""
    select: tuple[str, ...] = KERNELS
    """Glob patterns of the leaves."""

    def __post_init__(self) -> None:
        self._format()

    def _format(self) -> Uniform:
        return Uniform(bits=self.bits, symmetric=self.symmetric, channel_axis=self.channel_axis)

    def build(self, steps: int) -> Transform:
        return fake_quant(self._format(), select=self.select)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """Factors by truncated SVD."""

    rank: int
    """Inner size."""
    select: tuple[str, ...] = KERNELS
    """Glob patterns of the leaves."""

    def __post_init__(self) -> None:
        with collect("LowRank") as problems:
            if not self.rank >= 1:
                problems.append(f"rank: must be at least 1; got {self.rank}")

    def build(self, steps: int) -> Transform:
        return low_rank(self.rank, select=self.select)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cast:
    """Compute in another dtype."""

    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """What the model sees."""

    def build(self, steps: int) -> Transform:
        return cast(self.dtype)


Method = Prune | TrainedCodebook | LearnedStepSize | FakeQuant | LowRank | Cast
