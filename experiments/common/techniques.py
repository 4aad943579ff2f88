"""The techniques that are combined: what each is, and its transform."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

from experiments.common.methods import stretch
from lepton_jax import cast, fake_quant, low_rank, prune
from lepton_jax.core import schedules
from lepton_jax.core.errors import check_fraction, collect
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, Path
from lepton_jax.lowrank.method import Method
from lepton_jax.quantization import Uniform

Technique = Literal["prune", "quantize", "low_rank", "cast", "distil"]
TECHNIQUES: tuple[Technique, ...] = get_args(Technique)
_SMALL = 0.02
"""Weights of less than this share of all stay dense: an output layer has little to give, and every class needs its logit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualShares:
    """Ranks that bring all weights together to a fraction of their size, and of their multiplications in dense layers.

    Every weight is brought to the same share, small ones stay dense. Only shapes are looked at, so that all seeds have the
    same ranks.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.lowrank import Svd
      >>> EqualShares(fraction=0.5).ranks({"a": jnp.ones((100, 100)), "b": jnp.ones((10, 10))}, Svd())
      {'a': 24}
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"EqualShares: fraction must be in (0, 1]; got {self.fraction}.")

    def ranks(self, weights: Mapping[Path, Array], method: Method) -> dict[Path, int]:
        """Return ``{path: rank}``."""
        sizes = {path: math.prod(weight.shape) for path, weight in weights.items()}
        total = sum(sizes.values())
        large = {path: size for path, size in sizes.items() if size >= _SMALL * total}
        share = (self.fraction * total - (total - sum(large.values()))) / sum(large.values())
        each = {path: method.at(path).parameters(tuple(weights[path].shape), 1) for path in large}
        return {path: max(int(share * size / each[path]), 1) for path, size in large.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How strong every technique is, the same in all rows."""

    sparsity: float = 0.9
    """Of pruning, one threshold for all layers: of the kernels, or of their factors."""
    pruned_at: float = 0.5
    """Where the sparsity has arrived, as a fraction of the phase."""
    bits: int = 4
    """Of kernels or factors, one scale a column."""
    kept: float = 0.5
    """What is left of the multiplications by low rank."""
    temperature: float = 2.0
    """Of the teacher's answers."""
    soft: float = 0.5
    """Weight of the teacher's answers; labels have the rest."""

    def __post_init__(self) -> None:
        check_fraction("Settings: sparsity", self.sparsity)
        Uniform(bits=self.bits)
        with collect("Settings") as problems:
            for field in ("pruned_at", "kept", "soft"):
                if not 0 < getattr(self, field) <= 1:
                    problems.append(f"{field}: must be in (0, 1]; got {getattr(self, field)}")
            if not self.temperature > 0:
                problems.append(f"temperature: must be positive; got {self.temperature}")

    def build(self, technique: Technique, steps: int) -> Transform | None:
        """Return a technique's transform for a phase of so many steps; None: it has none."""
        match technique:
            case "prune":
                rise = schedules.polynomial(self.sparsity, *stretch(0, self.pruned_at, steps))
                return prune(rise, scope="global", interval=20)
            case "quantize":
                return fake_quant(Uniform(bits=self.bits, channel_axis=-1))
            case "low_rank":
                return low_rank(EqualShares(fraction=self.kept))
            case "cast":
                return cast("bfloat16")
            case "distil":
                return None
